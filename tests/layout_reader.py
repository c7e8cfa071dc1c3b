"""What a reader of a layout knows in the end: the oracle of the overlay's properties.

It knows nothing of how a layout is made. It reads segments from first to last, applies what each
one says, and insists that changed blocks have one meaning.
"""

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from qcn_indexer.layout import Segment


def read(segments: Iterable[Segment]) -> dict[PurePosixPath, tuple[str, str]]:
    """Return for each file what is known of it last: `file` or another kind, and the text."""
    known: dict[PurePosixPath, tuple[str, str]] = {}
    for segment in segments:
        if segment.kind == "change":
            kind, text = known[segment.path]
            assert kind == "file", "blocks can only be applied to a whole file"
            known[segment.path] = ("file", applied(segment.text, text))
        elif segment.kind != "note":
            known[segment.path] = (segment.kind, segment.text)
        elif segment.text == "(deleted)\n":
            del known[segment.path]
        elif segment.text.startswith("(renamed to "):
            new = segment.text.removeprefix("(renamed to ").removesuffix(")\n")
            known[PurePosixPath(new)] = known.pop(segment.path)
        else:
            known[segment.path] = ("note", segment.text)
    return known


def applied(change: str, text: str) -> str:
    """Replace every original block by its updated one; each must stand exactly once, in order."""
    lines = text.split("\n")
    result: list[str] = []
    done = 0
    for original, updated in blocks(change):
        places = [
            start for start in range(len(lines)) if lines[start : start + len(original)] == original
        ]
        assert len(places) == 1, "an original block stands exactly once"
        (start,) = places
        assert start >= done, "blocks follow one another"
        result += lines[done:start] + updated
        done = start + len(original)
    return "\n".join(result + lines[done:])


def blocks(change: str) -> Iterator[tuple[list[str], list[str]]]:
    """Each block's original and updated lines."""
    assert change.endswith("\n")
    original: list[str] = []
    updated: list[str] | None = None
    for line in change.removesuffix("\n").split("\n"):
        if line == "original:":
            if updated is not None:
                yield original, updated
            original, updated = [], None
        elif line == "updated:":
            updated = []
        else:
            (original if updated is None else updated).append(line)
    assert updated is not None
    yield original, updated
