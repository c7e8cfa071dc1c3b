"""The tensors of a checkpoint folder: what is there and where, found before any is read.

safetensors alone, single or sharded. Pickled weights are never opened: unpickling runs code. Every
file's header is checked against its length and the index, so that a download that is not whole is
told at once and not after minutes of reading. `loading.py` reads.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from qcn_inference.errors import CheckpointError, not_converted, unreadable

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DOWNLOAD_AGAIN = "Download the file again; compare its size with the publisher's"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a file, as its header describes it."""

    name: str
    path: Path
    dtype: str  # as safetensors spells it: F32, BF16, F8_E4M3, …
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    nbytes: int


class TensorFiles:
    """What the files of a checkpoint folder hold; nothing of it is read."""

    def __init__(self, folder: Path) -> None:
        """Check every file: that its header agrees with its length and with the index."""
        self.paths = find_files(folder)
        self.folder = folder
        self._stored: dict[str, StoredTensor] = {}
        for path in self.paths:
            for tensor in _read_header(path):
                if other := self._stored.get(tensor.name):
                    raise CheckpointError(
                        path,
                        f"holds the tensor {tensor.name}, which {other.path.name} holds too",
                        "Delete what is left of an older download and download again",
                    )
                self._stored[tensor.name] = tensor
        self._check_index()

    def __contains__(self, name: object) -> bool:
        """Tell whether a tensor of this name is there."""
        return name in self._stored

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._stored)

    def find(self, name: str, *shape: int) -> StoredTensor:
        """Return the tensor of this name and shape.

        Raises:
            CheckpointError: no such tensor, or another shape.
        """
        tensor = self._stored.get(name)
        if tensor is None:
            raise CheckpointError(
                self.folder,
                f"no file holds the tensor {name}",
                "Check that config.json belongs to these weights and that every file is there",
            )
        if tensor.shape != shape:
            raise CheckpointError(
                tensor.path,
                f"tensor {name} has the shape {list(tensor.shape)}; config.json implies "
                f"{list(shape)}",
                "Use the config.json that the weights came with",
            )
        return tensor

    def __getitem__(self, name: str) -> StoredTensor:
        """Return the tensor of this name, which is there, of whatever shape."""
        return self._stored[name]

    def one_of(self, names: frozenset[str]) -> StoredTensor:
        """Return the first of these tensors, by name."""
        return self._stored[min(names)]

    def _check_index(self) -> None:
        index = self.folder / INDEX
        if not index.is_file():
            return
        for name, shard in _weight_map(index).items():
            tensor = self._stored.get(name)
            if tensor is None or tensor.path != self.folder / shard:
                raise CheckpointError(
                    self.folder / shard,
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
        raise not_converted(ggufs[0])
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


def _read_header(path: Path) -> list[StoredTensor]:
    """Return what a file holds, in the order it lies there; safetensors checks the header."""
    try:
        with path.open("rb") as file:
            with safe_open(path, framework="pt"):
                pass
            start = 8 + int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(start - 8))
    except OSError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            path, f"is no whole safetensors file ({error})", DOWNLOAD_AGAIN
        ) from error
    header.pop("__metadata__", None)
    tensors = [
        StoredTensor(
            name,
            path,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            start=start + entry["data_offsets"][0],
            nbytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    ]
    return sorted(tensors, key=lambda tensor: tensor.start)


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
