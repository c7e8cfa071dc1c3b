"""Columns and lines as the language server protocol counts them.

A position is a line and a *column in code units* of the negotiated encoding: bytes in utf-8,
16-bit units in utf-16, characters in utf-32. A line ends at `\\n`, `\\r\\n` or `\\r` and nowhere
else: `str.splitlines`, which also breaks at form feeds, NEL or U+2028, would put every later
line at the wrong number.

Everything here is a pure function on one line or one text, and does its work in string methods
that run in C: no loop visits single characters, so that a line of 50 MB is only slow, not stuck.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the protocol's types take most of a second to import; `qcn scan` needs none
    from lsprotocol.types import PositionEncodingKind


def split_lines(text: str) -> list[str]:
    r"""Split into lines, each with its line end; the last has none and may be empty.

    `"".join(split_lines(text)) == text`, and there is always at least one line.
    """
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    if text.count("\r") != text.count("\r\n"):  # a carriage return stands alone somewhere
        return [part for line in lines for part in _split_at_carriage_returns(line)]
    return lines


def _split_at_carriage_returns(line: str) -> list[str]:
    end = "\r\n" if line.endswith("\r\n") else "\n" if line.endswith("\n") else ""
    *parts, last = line[: len(line) - len(end)].split("\r")
    return [*(part + "\r" for part in parts), last + end]


def plain(text: str) -> str:
    r"""Return `text` as the model reads it: with `\n` at the line ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def plain_lines(text: str) -> list[str]:
    """Return the lines without their ends; there is always at least one, which may be empty."""
    return plain(text).split("\n")


def line_end(text: str) -> str:
    r"""Return the line end that most lines of `text` have; `\n` where it has none."""
    windows = text.count("\r\n")
    times = {"\n": text.count("\n") - windows, "\r\n": windows, "\r": text.count("\r") - windows}
    return max(times, key=lambda end: times[end])


def without_line_end(line: str) -> str:
    r"""Return the line without the `\n`, `\r\n` or `\r` that ends it."""
    if line.endswith("\r\n"):
        return line[:-2]
    return line[:-1] if line.endswith(("\n", "\r")) else line


def count_units(text: str, encoding: "PositionEncodingKind") -> int:
    """Count the code units of `text`; a lone surrogate counts as it would be written."""
    if text.isascii() or encoding == "utf-32":
        return len(text)
    if encoding == "utf-8":
        return len(text.encode("utf-8", "surrogatepass"))
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def index_at(line: str, column: int, encoding: "PositionEncodingKind") -> tuple[int, int]:
    """Find the character that a column points at.

    Returns its index in `line`, and how many code units into that character the column points:
    0 at its start, which is where every sound column is. A column past the end is the end.
    """
    if line.isascii() or encoding == "utf-32":
        return min(column, len(line)), 0
    index, rest = 0, line
    while len(rest) > 1:  # halve: all steps together encode the line once
        half = rest[: len(rest) // 2]
        units = count_units(half, encoding)
        if units <= column:
            column -= units
            index += len(half)
            rest = rest[len(half) :]
        else:
            rest = half
    if column >= count_units(rest, encoding):
        return len(line), 0
    return index, column
