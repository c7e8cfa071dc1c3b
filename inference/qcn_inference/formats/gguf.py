"""The GGUF container: metadata and the places of tensors, from one file or from a split set.

Read by ourselves, not with the `gguf` package (which tests use as oracle and writer): its reader
took 10.7 s and 550 MB for the vocabulary of this model family alone, and follows damaged lengths
out of the file. Here every length is checked against what is left of the file first.

    magic "GGUF", version, tensor count, pair count
    pairs: key, type, value; a string is a length and UTF-8
    tensors: name, dimensions (fastest first), type, offset
    padding to the alignment, then the data that offsets count from
"""

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qcn_inference.errors import CheckpointError, unreadable
from qcn_inference.formats.gguf_blocks import TYPES, TensorType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DOWNLOAD_AGAIN = "Download the file again; compare its size with the publisher's"
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
MOST_DIMENSIONS = 4
SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies."""

    path: Path
    kind: TensorType
    shape: tuple[int, ...]  # slowest dimension first, as in torch
    data: Tensor  # [rows, bytes of a row] uint8, a view of the mapped file


@dataclass(frozen=True, slots=True)
class Gguf:
    """The metadata of the first file, and the tensors of all."""

    paths: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, Place]


def read_gguf(path: Path) -> Gguf:
    """Read a file, or the whole set it is the first or any other part of.

    Raises:
        CheckpointError: a file is missing, no GGUF, cut short, or damaged.
    """
    paths = _parts(path)
    files = [_Reader(part).read() for part in paths]
    tensors: dict[str, Place] = {}
    for _, places in files:
        for name, place in places.items():
            if name in tensors:
                raise CheckpointError(
                    place.path, f"holds the tensor {name} a second time", DOWNLOAD_AGAIN
                )
            tensors[name] = place
    return Gguf(tuple(paths), files[0][0], tensors)


def _parts(path: Path) -> list[Path]:
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    paths = [
        path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [part for part in paths if not part.is_file()]
    if missing:
        raise CheckpointError(
            missing[0],
            f"no such file; {path.name} is one of {count} files, {len(missing)} of them missing",
            "Download the missing files into the same folder",
        )
    return paths


class _Reader:
    """One pass over a file's header."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        try:
            with path.open("rb") as file:
                # Copy-on-write, because torch takes no read-only memory; nothing writes to it.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise unreadable(path, error) from error
        except ValueError as error:  # an empty file
            raise CheckpointError(path, f"cannot be read ({error})", DOWNLOAD_AGAIN) from error

    def read(self) -> tuple[dict[str, Any], dict[str, Place]]:
        if self._take(4) != MAGIC:
            raise CheckpointError(
                self._path, "is no GGUF file", "Name a file that ends in .gguf, or a folder"
            )
        version = self._number("I")
        if version not in VERSIONS:
            raise self._damaged(f"is of GGUF version {version}; expected 2 or 3, little-endian")
        tensor_count, pair_count = self._number("Q"), self._number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self._string()
            metadata[key] = self._value(self._number("I"))
        described = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise self._damaged(f"has the alignment {alignment!r}")
        start = -(-self._at // alignment) * alignment
        places: dict[str, Place] = {}
        for name, shape, kind, offset in described:
            if name in places:
                raise self._damaged(f"holds the tensor {name} twice")
            places[name] = self._place(name, shape, kind, start + offset)
        return metadata, places

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dimensions = self._number("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self._damaged(f"gives tensor {name[:80]} {dimensions} dimensions")
        shape = tuple(reversed(self._numbers("Q", dimensions)))
        return name, shape, self._number("I"), self._number("Q")

    def _place(self, name: str, shape: tuple[int, ...], number: int, start: int) -> Place:
        kind = TYPES.get(number)
        if kind is None:
            known = ", ".join(sorted(each.name for each in TYPES.values()))
            raise CheckpointError(
                self._path,
                f"tensor {name} is of GGML type {number}; read are {known}",
                "Use a file quantised to one of these, such as Q4_K_M, Q8_0 or MXFP4",
            )
        rows = 1
        for size in shape[:-1]:
            rows *= size
        if shape[-1] % kind.elements:
            raise self._damaged(
                f"gives tensor {name} rows of {shape[-1]}, no multiple of {kind.elements}"
            )
        row = shape[-1] // kind.elements * kind.size
        if start + rows * row > len(self._map) or rows * row == 0:
            raise self._damaged(
                f"ends within tensor {name}, at {len(self._map)} bytes of {start + rows * row}"
            )
        data = torch.frombuffer(self._map, dtype=torch.uint8, count=rows * row, offset=start)
        return Place(self._path, kind, shape, data.view(rows, row))

    def _value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            raise self._damaged(f"has a value of the unknown type {kind}")
        item, count = self._number("I"), self._number("Q")
        if item in SCALARS:
            return self._numbers(SCALARS[item], count)
        if item != STRING:
            raise self._damaged(f"has an array of the unknown type {item}")
        return [self._string() for _ in range(count)]  # ends with the file at the latest

    def _string(self) -> str:
        return self._take(self._number("Q")).decode("utf-8", errors="replace")

    def _number(self, code: str) -> Any:
        return self._numbers(code, 1)[0]

    def _numbers(self, code: str, count: int) -> list[Any]:
        size = struct.calcsize(f"<{code}")
        return list(struct.unpack(f"<{count}{code}", self._take(count * size)))

    def _take(self, count: int) -> bytes:
        if count > len(self._map) - self._at:
            raise self._damaged(f"ends within its header, at byte {len(self._map)}")
        self._at += count
        return self._map[self._at - count : self._at]

    def _damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(self._path, problem, DOWNLOAD_AGAIN)
