"""Which format a path holds."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qcn_inference.config import parse_config
from qcn_inference.errors import CheckpointError
from qcn_inference.formats.gguf_source import GgufSource
from qcn_inference.formats.packed_source import METHODS, Layout, PackedSource
from qcn_inference.formats.safetensors_source import SafetensorsSource
from qcn_inference.formats.source import Source


def open_source(path: Path, read: Callable[[int], None], *, int4: bool, threads: int) -> Source:
    """Open a checkpoint to be converted.

    Args:
        path: a GGUF file, a folder with one (or with one split set), or a folder of safetensors.
        read: told the bytes taken, as they are.
        int4: whether experts that are stored as floats are to be quantised.
        threads: that quantise.

    Raises:
        CheckpointError: it is none, damaged, or there is nothing to do.
    """
    if path.suffix == ".gguf":
        return _gguf(path, read, int4)
    if ggufs := sorted(path.glob("*.gguf")):
        return _gguf(_only(path, ggufs), read, int4)
    if _method(path) in METHODS:
        return PackedSource(path, read)
    source = SafetensorsSource(path, read, threads)
    if not int4:
        raise CheckpointError(
            path,
            "is served as it is: there is nothing to convert",
            "Say --experts int4 to quantise its experts",
        )
    return source


def is_served(path: Path, values: Mapping[str, Any]) -> bool:
    """Say of what a folder's config.json holds whether the folder is served as it is.

    If not, it is to be converted. Errors name `path`.

    Raises:
        CheckpointError: it can be neither.
    """
    quantisation = values.get("quantization_config")
    if not isinstance(quantisation, dict) or quantisation.get("quant_method") not in METHODS:
        parse_config(path, values)
        return True
    Layout.read(path, quantisation)
    parse_config(path, {key: values[key] for key in values if key != "quantization_config"})
    return False


def _gguf(path: Path, read: Callable[[int], None], int4: bool) -> Source:
    source = GgufSource(path, read)
    if int4 and not source.quantised:
        raise CheckpointError(
            path,
            "holds experts as floats",
            "Convert it without --experts, and then that copy with --experts int4",
        )
    return source


def _only(folder: Path, ggufs: list[Path]) -> Path:
    sets = {path.name.rpartition("-of-")[0].rpartition("-")[0] or path.name: path for path in ggufs}
    if len(sets) > 1:
        raise CheckpointError(
            folder, f"holds {len(sets)} GGUF models", f"Name one of them, such as {ggufs[0]}"
        )
    return ggufs[0]


def _method(folder: Path) -> object:
    """Return the quantisation's name; None where it has none, or is for `load_config` to refuse."""
    try:
        return json.loads((folder / "config.json").read_bytes())["quantization_config"][
            "quant_method"
        ]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
