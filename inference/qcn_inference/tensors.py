"""The tensors of a checkpoint folder: safetensors alone, single or sharded, one read at a time.

`TensorReader` finds each tensor, checks its shape, undoes block FP8 and converts; `weights.py` says
which tensors a layer is made of. Pickled weights are never opened: unpickling runs code. A tensor
that nothing reads is an error, as an unknown value in `config.json` is, because the model would
compute something else than its makers meant; the multi-token-prediction head (`mtp.*`) is the
exception, being an addition and no part of the model's own function.
"""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from qcn_kernels.fp8 import dequantise
from qcn_kernels.groupwise import PARTS, from_parts
from qcn_kernels.moe import Matrices
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qcn_inference.errors import CheckpointError

Progress = Callable[[int, int], None]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DOWNLOAD_AGAIN = "Download the file again; compare its size with the publisher's"

_IGNORED = ("mtp.",)
_FLOATS = ("F32", "F16", "BF16")
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I32": 4, "I64": 8}  # of an element, else 1


class TensorReader:
    """The tensors of a checkpoint by name, each as the runtime wants it."""

    def __init__(
        self,
        folder: Path,
        fp8_block: tuple[int, int] | None,
        dtype: torch.dtype | None,
        progress: Progress | None,
    ) -> None:
        """Open every file and check that its header agrees with its length and with the index."""
        self.files = find_files(folder)
        self._folder = folder
        self._fp8_block = fp8_block
        self._progress = progress
        self._open = {path: _open(path) for path in self.files}
        self._where: dict[str, Path] = {}
        for path, file in self._open.items():
            for name in file.keys():  # noqa: SIM118  # a file, no dict
                if name in self._where:
                    raise CheckpointError(
                        path,
                        f"holds the tensor {name}, which {self._where[name].name} holds too",
                        "Delete what is left of an older download and download again",
                    )
                self._where[name] = path
        self._check_index()
        self._unread = set(self._where)
        self._bytes_total = sum(path.stat().st_size for path in self.files)
        self._bytes_done = 0
        self.dtype = dtype or self._default_dtype()

    def __contains__(self, name: str) -> bool:
        """Tell whether the checkpoint holds a tensor of this name."""
        return name in self._where

    def check(self, name: str, *shape: int) -> Path:
        """Return the file that holds a tensor of this name and shape.

        Raises:
            CheckpointError: no such tensor, or another shape.
        """
        path = self._where.get(name)
        if path is None:
            raise CheckpointError(
                self._folder,
                f"no file holds the tensor {name}",
                "Check that config.json belongs to these weights and that every file is there",
            )
        found = tuple(self._open[path].get_slice(name).get_shape())
        if found != shape:
            raise CheckpointError(
                path,
                f"tensor {name} has the shape {list(found)}; config.json implies {list(shape)}",
                "Use the config.json that the weights came with",
            )
        return path

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Read one tensor, converted to `dtype` (None: the dtype of matrix products).

        Raises:
            CheckpointError: no such tensor, another shape, a dtype that is no weight's, or FP8
                without its scale.
        """
        path = self.check(name, *shape)
        kind = self._open[path].get_slice(name).get_dtype()
        if f"{name}_scale_inv" in self:
            tensor = self._dequantised(path, name, kind, shape)
        elif kind in _FLOATS:
            tensor = self._read(path, name)
        else:
            raise CheckpointError(
                path,
                f"tensor {name} is stored as {kind} without {name}_scale_inv; expected F32, F16, "
                "BF16, or F8_E4M3 with its scales",
                "Use the bf16 or the FP8 checkpoint",
            )
        return tensor.to(dtype or self.dtype)

    def take_matrices(self, name: str, count: int, rows: int, columns: int) -> Matrices:
        """Read a stack of matrices: in groups, if `qcn models convert` stored it so.

        Raises:
            CheckpointError: as `take`, or parts of groups that do not fit each other.
        """
        if f"{name}.codes" not in self:
            return self.take(name, count, rows, columns)
        path = self._where[f"{name}.codes"]
        parts = {part: self.stored(f"{name}.{part}") for part in PARTS if f"{name}.{part}" in self}
        try:
            matrices = from_parts(parts, self.dtype)
        except (ValueError, LookupError) as error:
            problem = f"holds of {name} {error}"
            raise CheckpointError(path, problem, "Convert the checkpoint again") from error
        if matrices.shape != (count, rows, columns):
            raise CheckpointError(
                path,
                f"{name} has the shape {list(matrices.shape)}; config.json implies "
                f"{[count, rows, columns]}",
                "Use the config.json that was converted with it",
            )
        return matrices

    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self._where)

    def size(self, name: str) -> int:
        """Return the bytes of a tensor that is there."""
        described = self._open[self._where[name]].get_slice(name)
        return int(prod(described.get_shape())) * _BYTES.get(described.get_dtype(), 1)

    def stored(self, name: str) -> Tensor:
        """Read a tensor that is there, as it is on disk."""
        return self._read(self._where[name], name)

    def finish(self) -> None:
        """Report all bytes done; raise CheckpointError if a tensor was left unread."""
        left = sorted(name for name in self._unread if not name.startswith(_IGNORED))
        if left:
            raise CheckpointError(
                self._where[left[0]],
                f"holds {len(left)} tensors that a qwen3_next model of this config.json has no use "
                f"for, such as {left[0]}",
                "Check that config.json belongs to these weights",
            )
        if self._progress:
            self._progress(self._bytes_total, self._bytes_total)

    def ignore(self, name: str) -> None:
        """Declare a tensor unneeded, if it is there."""
        self._unread.discard(name)

    def _dequantised(self, path: Path, name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
        scale_name = f"{name}_scale_inv"
        if kind != "F8_E4M3" or self._fp8_block is None:
            raise CheckpointError(
                path,
                f"{scale_name} exists, but {name} is stored as {kind} and config.json gives "
                f"weight_block_size {self._fp8_block}; expected F8_E4M3 and a block size",
                "Use the config.json that the weights came with",
            )
        rows, columns = self._fp8_block
        blocks = (-(-shape[-2] // rows), -(-shape[-1] // columns))
        scale = self.take(scale_name, *shape[:-2], *blocks, dtype=torch.float32)
        return dequantise(self._read(path, name), scale_inv=scale, block=self._fp8_block)

    def _read(self, path: Path, name: str) -> Tensor:
        try:
            tensor: Tensor = self._open[path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(path, f"tensor {name}: {error}", DOWNLOAD_AGAIN) from error
        self._unread.discard(name)
        self._bytes_done += tensor.nbytes
        if self._progress:
            self._progress(self._bytes_done, self._bytes_total)
        return tensor

    def _default_dtype(self) -> torch.dtype:
        name = "model.embed_tokens.weight"
        path = self._where.get(name)
        stored = self._open[path].get_slice(name).get_dtype() if path else None
        return torch.float32 if stored == "F32" else torch.bfloat16

    def _check_index(self) -> None:
        index = self._folder / INDEX
        if not index.is_file():
            return
        for name, shard in _weight_map(index).items():
            if self._where.get(name) != self._folder / shard:
                raise CheckpointError(
                    self._folder / shard,
                    f"lacks the tensor {name}, which {INDEX} says it holds",
                    "Download the file and the index again; they may be of different versions",
                )


def find_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, sorted.

    Raises:
        CheckpointError: there are none, or one that the index names is missing.
    """
    index = folder / INDEX
    if index.is_file():
        files = [folder / shard for shard in sorted(set(_weight_map(index).values()))]
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise CheckpointError(
                missing[0],
                f"no such file; {INDEX} names {len(files)} files, {len(missing)} of them missing",
                "Download the missing files into the same folder",
            )
        return files
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if ggufs := sorted(folder.glob("*.gguf")):
        raise CheckpointError(
            ggufs[0],
            "GGUF files are converted once, not served as they are",
            f"Run `qcn models convert {ggufs[0]} FOLDER` and serve FOLDER",
        )
    pickles = sorted(path for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            pickles[0],
            "pickled weights are not loaded, because opening them runs code they carry; expected "
            f"{SINGLE} or {INDEX}",
            "Download the safetensors version, or convert with transformers' save_pretrained",
        )
    raise CheckpointError(
        folder / SINGLE,
        f"no such file, and no {INDEX} either",
        "Download the weights into the folder of config.json",
    )


def _open(path: Path) -> Any:  # safetensors' handle has no annotations
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            path, f"is no whole safetensors file ({error})", DOWNLOAD_AGAIN
        ) from error


def _weight_map(index: Path) -> dict[str, str]:
    """Read the index: tensor name to file name. Names with a folder in them are refused."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(tensor): str(shard) for tensor, shard in weight_map.items()}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            index, f"holds no weight_map of tensor to file ({error!r})", "Download the file again"
        ) from error
    for shard in names.values():
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                index,
                f"names the file {shard!r}; expected *.safetensors beside it",
                "Mend the index",
            )
    if not names:
        raise CheckpointError(index, "names no tensors", "Download the file again")
    return names
