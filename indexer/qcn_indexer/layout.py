"""A context as values: segments in their order, which the engine reads from first to last.

Guarantees:
- Values are frozen and plain. No control token is ever written here: the engine puts
  `<|file_sep|>` and the path in front of a segment's text, and reads the text as text.
- `Segment.hash` names exactly what the model reads of a segment, so two layouts whose hashes agree
  in front share the engine's work in front. Zone and heat say where checkpoints go, not what is
  read, and are left out of it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

Zone = Literal["base", "overlay"]
Kind = Literal["file", "skeleton", "change", "note"]
Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Segment:
    """What stands under one header: a file, its signatures, its changed blocks, or a note on it."""

    path: PurePosixPath
    text: str
    zone: Zone
    kind: Kind
    hot: bool = False  # likely to change: the engine keeps a checkpoint in front of it

    @property
    def hash(self) -> str:
        """The engine's name for what is read: SHA-256 over path, a NUL and text, hexadecimal."""
        # Half a surrogate pair, which an editor may send, goes to the engine as "?".
        return hashlib.sha256(f"{self.path}\0{self.text}".encode("utf-8", "replace")).hexdigest()

    def reads_as(self, other: "Segment") -> bool:
        """Whether the model reads the same in both: the hashes agree, without making them."""
        return (self.path, self.text) == (other.path, other.text)

    def tokens(self, count: Count) -> int:
        """What the segment takes up: the control token in front, the path's line, the text."""
        return 1 + count(f"{self.path}\n{self.text}")


@dataclass(frozen=True, slots=True)
class Layout:
    """Base, then overlay."""

    segments: tuple[Segment, ...]

    def common_front(self, other: "Layout") -> int:
        """How many segments from the first on are read the same in both: those cost nothing."""
        length = 0
        for mine, theirs in zip(self.segments, other.segments, strict=False):
            if not mine.reads_as(theirs):
                break
            length += 1
        return length
