"""Make a copy of a checkpoint whose experts are 4-bit: `python -m qcn_inference.convert SRC DST`.

SRC is a folder of bf16 or FP8 safetensors, of GPTQ or AWQ, or a GGUF file. Experts stored as floats
are quantised (`qcn_kernels/groupwise/quantise.py`); those that were published quantised keep their
codes, whatever their bits: nothing is quantised twice. All other weights keep 8 bits or more.

The copy is made part by part, a file for each layer and one for the rest. A file gets its name only
when it is whole and on disk, and `config.json`, without which nothing loads, comes last. So a
conversion that was killed, or ran out of disk, goes on where it stopped when it is run again, and
comes to the same bytes: what a part becomes depends on nothing else. A finished copy names its
original by a digest; asked for again, it is left as it is.

The gate: a copy with experts quantised here is compared with its original on real text, and is not
completed where it is further off than BOUND. It is refused, not warned about, because a model that
is a little wrong is a fault that nobody notices later; the original can be served, or a file that
its publisher quantised with more care be converted. Published codes are kept bit for bit, so there
is nothing to compare.

Standard output: one JSON object a line, `{"activity", "done", "total"}` in bytes read, and at the
end `{"result"}`, or `{"error"}` with exit code 1.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qcn_inference.config import ModelConfig, load_config, parse_config
from qcn_inference.divergence import TOKENS, Divergence, measure, sample_text
from qcn_inference.errors import CheckpointError
from qcn_inference.formats import Source, open_source
from qcn_inference.grid import BLOCK
from qcn_inference.loading import Loader
from qcn_inference.tensors import INDEX, TensorFiles
from qcn_inference.tokenizer import Tokenizer
from qcn_inference.weights import declared_model, streamed_model

FORMAT = 1
"""Raised when what a part becomes changes: an older half of a copy is then not gone on with."""
MARKER = "conversion.json"  # there while a copy is being made: of what, in which format
LOCK = "conversion.lock"
PART = ".part"  # ends the name of a file that is being written
BOUND = Divergence(mean=0.05, percentile_99=0.5, tokens=0)
PIECES, PIECE = 256, 4096  # of a file that are read to tell it from others

Report = Callable[[str, int, int], None]  # activity, bytes done, bytes in all


class ConversionError(Exception):
    """A copy that cannot be made; str() says why and what to do."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A whole copy."""

    divergence: Divergence | None  # as measured; None where experts are as they were published
    was_there: bool  # it had been finished before


def convert(origin: Path, folder: Path, report: Report, *, int4: bool, threads: int) -> Converted:
    """Make a copy of the checkpoint `origin` in `folder`, or finish one that was begun.

    Args:
        origin: see `open_source`.
        folder: new, empty, or of a conversion of the same checkpoint, interrupted or finished.
        report: told what is done and how far it is.
        int4: whether experts that are stored as floats are quantised.
        threads: that quantise.

    Raises:
        CheckpointError: something is wrong with `origin`, or with a copy that was finished.
        ConversionError: with `folder` or the disk, or the copy is further off than `BOUND`.
    """
    progress = _Progress(report)
    source = open_source(origin, progress.read, int4=int4, threads=threads)
    if not source.lossless:
        # The comparison needs it: see it first.
        Tokenizer(origin, load_config(origin).vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        with lock:
            copy = _finished(folder, source)
            if copy is None:
                _begin(folder, source)
                _write_weights(folder, source, progress)
                _check(folder, source)
                measured = None if source.lossless else _compare(origin, folder, source, report)
                _finish(folder, source, measured)
                copy = Converted(measured, was_there=False)
    except Timeout as error:
        raise ConversionError(f"{folder}: another conversion is writing there.") from error
    (folder / LOCK).unlink(missing_ok=True)
    return copy


class _Progress:
    """Counts the bytes of the source; a part that is there already counts as read."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._done = 0
        self.total = 0
        self.activity = ""

    def read(self, count: int) -> None:
        self._done += count
        self._tell()

    def at(self, done: int) -> None:
        self._done = done
        self._tell()

    def _tell(self) -> None:
        self._report(self.activity, min(self._done, self.total), self.total)


def _finished(folder: Path, source: Source) -> Converted | None:
    """Look whether a whole copy of this very checkpoint is there; raises CheckpointError as well
    where one has lost something since."""
    try:
        stored = json.loads((folder / "config.json").read_bytes())["quantization_config"]
        made_of = stored["format"], stored["source"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if (folder / MARKER).exists() or made_of != (FORMAT, _identity(source)):
        return None
    _check(folder, source)
    measured = stored.get("kl_divergence")
    return Converted(measured and Divergence(**measured), was_there=True)


def _begin(folder: Path, source: Source) -> None:
    """See that the folder is ours, and note what is being made in it."""
    marker = folder / MARKER
    wanted = {"format": FORMAT, "source": _identity(source)}
    if marker.is_file():
        if json.loads(marker.read_bytes()) != wanted:
            raise ConversionError(
                f"{folder}: holds part of a copy of another checkpoint, or by another version. "
                "Name another folder, or delete this one."
            )
        for left in folder.glob(f"*{PART}"):
            left.unlink()
        return
    if any(path.name not in (LOCK, MARKER + PART) for path in folder.iterdir()):
        raise ConversionError(f"{folder}: is not empty. Name a new folder.")
    _write(marker, json.dumps(wanted).encode())


def _identity(source: Source) -> str:
    """Return a digest of the config and of pieces of every file; the same files give the same."""
    digest = hashlib.sha256(json.dumps(dict(source.values), sort_keys=True).encode())
    digest.update(json.dumps(source.lossless).encode())
    for path in source.files:
        size = path.stat().st_size
        digest.update(f"\n{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for piece in range(PIECES):
                file.seek(piece * max(0, size - PIECE) // (PIECES - 1))
                digest.update(file.read(PIECE))
    return digest.hexdigest()


def _write_weights(folder: Path, source: Source, progress: _Progress) -> None:
    """Write the file of each part that is not there yet, then the index and the texts."""
    sizes = source.part_bytes()
    progress.total = sum(sizes)
    paths = [
        folder / f"model-{part + 1:05}-of-{len(sizes):05}.safetensors" for part in range(len(sizes))
    ]
    for part, path in enumerate(paths):
        progress.activity = f"Layer {part} of {len(sizes) - 1}" if part else "Embeddings and head"
        progress.at(sum(sizes[:part]))
        if not path.is_file():
            _write(path, _part(source, part))
    progress.at(progress.total)
    weight_map: dict[str, str] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            weight_map |= dict.fromkeys(sorted(file.keys()), path.name)
    total = sum(path.stat().st_size for path in paths)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write(folder / INDEX, json.dumps(index, indent=1).encode())
    for name, text in source.texts.items():
        _write(folder / name, text)


def _check(folder: Path, source: Source) -> None:
    """See that the copy is a whole model, before it is called one; nothing large is read.

    Raises:
        CheckpointError: the origin lacked a tensor, or had one of another shape or of no use.
    """
    config = parse_config(folder / "config.json", _values(source, None))
    loader = Loader(
        TensorFiles(folder), fp8_block=config.fp8_block, dtype=None, device="meta", progress=None
    )
    with closing(loader):
        declared_model(config, loader, "", mtp=True)


def _part(source: Source, part: int) -> dict[str, Tensor]:
    tensors = dict(source.tensors(part))
    for name, matrices in source.experts(part):
        if isinstance(matrices, Tensor):
            tensors[name] = matrices
        else:
            tensors |= {f"{name}.{piece}": tensor for piece, tensor in matrices.parts().items()}
    return tensors


def _write(path: Path, contents: bytes | Mapping[str, Tensor]) -> None:
    """Write a file beside its place; give it its name when all of it is on disk."""
    part = path.with_name(path.name + PART)
    try:
        if isinstance(contents, bytes):
            part.write_bytes(contents)
        else:
            save_file(dict(contents), part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise ConversionError(
            f"{path}: cannot be written ({error}). Make room and run the same command again: "
            "it goes on where it stopped."
        ) from error


def _compare(origin: Path, folder: Path, source: Source, report: Report) -> Divergence:
    """Measure the copy against the original; raises ConversionError where it is too far off."""
    progress = _Progress(report)
    progress.activity = "Comparing with the original"
    original = load_config(origin)
    copy = parse_config(folder / "config.json", _values(source, None))
    files = TensorFiles(origin), TensorFiles(folder)
    # Layers are read anew for every block.
    passes = -(-TOKENS // BLOCK)
    progress.total = passes * sum(path.stat().st_size for each in files for path in each.paths)
    with (
        closing(_loader(files[0], original, progress)) as first,
        closing(_loader(files[1], copy, progress)) as second,
    ):
        ids = sample_text(Tokenizer(origin, original.vocab_size))
        measured = measure(streamed_model(original, first), streamed_model(copy, second), ids)
    progress.at(progress.total)
    if measured.exceeds(BOUND):
        raise ConversionError(
            f"{folder}: the copy is too far from its original: KL divergence {measured.mean:.3g} "
            f"nats on average and {measured.percentile_99:.3g} at the 99th percentile of "
            f"{measured.tokens} tokens; allowed are {BOUND.mean} and {BOUND.percentile_99}. It was "
            "not completed. Serve the original, or convert a file that its publisher quantised."
        )
    return measured


def _loader(files: TensorFiles, config: ModelConfig, progress: _Progress) -> Loader:
    """Return what reads a checkpoint and tells the bytes of it as they are read."""
    before = 0

    def report(done: int, total: int) -> None:
        nonlocal before
        del total  # of one pass over one layer
        progress.read(done - before)
        before = done

    return Loader(files, fp8_block=config.fp8_block, dtype=None, device="cpu", progress=report)


def _values(source: Source, measured: Divergence | None) -> dict[str, Any]:
    """Return the copy's config.json."""
    quantisation: dict[str, Any] = {"quant_method": "groupwise", "format": FORMAT}
    if source.weight_block_size is not None:
        quantisation["weight_block_size"] = source.weight_block_size
    if measured is not None:
        quantisation["kl_divergence"] = asdict(measured)
    return {**source.values, "quantization_config": quantisation}


def _finish(folder: Path, source: Source, measured: Divergence | None) -> None:
    marker, values = folder / MARKER, _values(source, measured)
    values["quantization_config"]["source"] = json.loads(marker.read_bytes())["source"]
    _write(folder / "config.json", json.dumps(values, indent=2).encode())
    marker.unlink()


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m qcn_inference.convert")
    parser.add_argument("origin", type=Path, help="a folder of safetensors, or a GGUF file")
    parser.add_argument("folder", type=Path, help="where the copy goes")
    parser.add_argument("--experts", choices=["int4"], help="quantise experts stored as floats")
    given = parser.parse_args()
    threads = torch.get_num_threads()

    def report(activity: str, done: int, total: int) -> None:
        _print({"activity": activity, "done": done, "total": total})

    try:
        copy = convert(
            given.origin, given.folder, report, int4=given.experts == "int4", threads=threads
        )
    except (CheckpointError, ConversionError, OSError) as error:
        _print({"error": str(error)})
        return 1
    except KeyboardInterrupt:
        return 130
    _print({"result": asdict(copy)})
    return 0


def _print(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    sys.exit(main())
