"""What the filters know: the text around the cursor and its language."""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Context:
    """The text before and after the cursor with `\\n` line ends, and how the file is written."""

    prefix: str
    suffix: str
    language_id: str = ""
    line_end: str = "\n"

    @cached_property
    def lines_before(self) -> list[str]:
        """All lines before the cursor; the last is the cursor's own, up to the cursor."""
        return self.prefix.split("\n")

    @cached_property
    def lines_after(self) -> list[str]:
        """All lines after the cursor; the first is the rest of the cursor's own."""
        return self.suffix.split("\n")

    @property
    def line_before(self) -> str:
        """The cursor's line up to the cursor."""
        return self.lines_before[-1]

    @property
    def line_after(self) -> str:
        """The cursor's line from the cursor on."""
        return self.lines_after[0]

    @property
    def mid_line(self) -> bool:
        """Whether text follows the cursor on its line."""
        return bool(self.line_after.strip())


def indentation(line: str) -> str:
    """Return the white space that `line` starts with."""
    return line[: len(line) - len(line.lstrip(" \t"))]


def columns(line: str) -> int:
    """Return how far `line` is indented, a tab reaching to the next multiple of four."""
    return len(indentation(line).expandtabs(4))


def has_words(text: str) -> bool:
    """Return whether `text` says something: part of a name or number, not only punctuation."""
    return any(character.isalnum() or character == "_" for character in text)
