"""Which lines of a layout say what is no longer so, so that nobody copies from them.

A layout is read as its reader reads it, from first to last, and of each file's current text it is
kept where every line of it stands: in the base, in the file said whole since, or in the updated
half of a changed block. What is left over is superseded: older lines, originals that are quoted,
markers and notes.
"""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from qcn_indexer.blocks import ORIGINAL, UPDATED, Span
from qcn_indexer.layout import Segment
from qcn_indexer.overlay import Overlay

Line = tuple[int, int]
"""The number of a segment in the layout, and of a line in it."""


def superseded_lines(overlay: Overlay) -> tuple[tuple[Span, ...], ...]:
    """Return spans of superseded lines for each segment of the layout, in order; most are empty."""
    segments = overlay.layout.segments
    touched = {path for entry in overlay.entries for path in entry.paths}
    texts = {
        number: _lines_of(segment)
        for number, segment in enumerate(segments)
        if segment.path in touched
    }
    current: dict[PurePosixPath, list[Line]] = {}
    for number, segment in enumerate(overlay.base):
        if number in texts:
            current[segment.path] = _places(texts, number)
    for number, entry in enumerate(overlay.entries, start=len(overlay.base)):
        path = entry.segment.path
        if entry.rename:
            current[entry.rename[1]] = current.pop(path, [])
        elif entry.segment.kind == "change":
            current[path] = _changed(current[path], texts, number)
        else:
            current.pop(path, None)
            if entry.segment.kind != "note":
                current[path] = _places(texts, number)
    kept = {line for lines in current.values() for line in lines}
    return tuple(
        tuple(_without(kept, number, len(texts.get(number, ())))) for number in range(len(segments))
    )


def _lines_of(segment: Segment) -> list[str]:
    """Its lines, as `blocks.py` takes them: a change ends with a line feed that is no line's."""
    text = segment.text.removesuffix("\n") if segment.kind == "change" else segment.text
    return text.split("\n")


def _places(texts: dict[int, list[str]], number: int) -> list[Line]:
    return [(number, line) for line in range(len(texts[number]))]


def _changed(lines: list[Line], texts: dict[int, list[str]], number: int) -> list[Line]:
    """Where a file's lines stand behind the changed blocks in segment `number`."""
    text = [texts[segment][line] for segment, line in lines]
    result: list[Line] = []
    done = 0
    for original, updated in _blocks(texts[number]):
        quoted = texts[number][original[0] : original[1]]
        start = next(
            at for at in range(done, len(text) + 1) if text[at : at + len(quoted)] == quoted
        )
        result += lines[done:start] + [(number, line) for line in range(*updated)]
        done = start + len(quoted)
    return result + lines[done:]


def _blocks(change: Sequence[str]) -> Iterator[tuple[Span, Span]]:
    """The spans of lines of each block's original and updated half."""
    marks = [line for line, text in enumerate(change) if text in (ORIGINAL, UPDATED)]
    ends = [*marks[1:], len(change)]
    halves = [(mark + 1, end) for mark, end in zip(marks, ends, strict=True)]
    yield from zip(halves[::2], halves[1::2], strict=True)


def _without(kept: set[Line], number: int, length: int) -> Iterator[Span]:
    """The runs of a segment's lines that are not kept."""
    start: int | None = None
    for line in range(length + 1):
        if line < length and (number, line) not in kept:
            start = line if start is None else start
        elif start is not None:
            yield start, line
            start = None
