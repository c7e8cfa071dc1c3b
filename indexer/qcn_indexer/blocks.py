"""A change of a file as original and updated blocks, which a reader can apply.

The text of a change is a sequence of blocks:

    original:
    <lines as they stand in the version read before, with some context>
    updated:
    <the same lines as they are now>

Guarantees:
- Each original stands exactly once in the older version, and the originals follow one another
  there without overlap: "replace these by those" has one meaning, and gives the newer version to
  the last byte. Context grows until that holds.
- Where it cannot hold (a block would be the whole file, or holds a line that reads as a marker),
  there is no change text: the caller shows the whole file.

Lines are what lies between line feeds; a carriage return belongs to its line, and the end of a
file with a final line feed is one more, empty line. So no byte is lost.

Why blocks and not a unified diff: models apply them better (a search over thirty formats for
next-edit models preferred them; line arithmetic is where diffs fail), and the two words that mark
them are what Sweep's next-edit models of this family were trained on.
"""

from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher

ORIGINAL, UPDATED = "original:", "updated:"
CONTEXT = 3  # lines on each side, as in a unified diff

Hunk = tuple[int, int, int, int]  # older[i1:i2] became newer[j1:j2]
Span = tuple[int, int]  # lines of the older version


def change_text(older: str, newer: str) -> str | None:
    """Return the blocks that turn `older` into `newer`, or None where no blocks can say it."""
    before, after = older.split("\n"), newer.split("\n")
    lines: list[str] = []
    for i1, i2, j1, j2 in _blocks(before, hunks_of(before, after)):
        block = before[i1:i2], after[j1:j2]
        if i2 - i1 == len(before) or any(_reads_as_marker(line) for part in block for line in part):
            return None
        lines += (ORIGINAL, *block[0], UPDATED, *block[1])
    return "\n".join(lines) + "\n" if lines else None


def hunks_of(before: Sequence[str], after: Sequence[str]) -> list[Hunk]:
    """Return the runs of lines that differ.

    What is equal in front and at the end is set aside first, and difflib may take frequent lines
    for junk: both keep a long file quick, and neither makes the hunks wrong.
    """
    front = _equal(zip(before, after, strict=False))
    shorter = min(len(before), len(after)) - front
    pairs = zip(reversed(before), reversed(after), strict=False)
    end = min(_equal(pairs), shorter)
    middle = SequenceMatcher(
        None, before[front : len(before) - end], after[front : len(after) - end]
    )
    return [
        (front + i1, front + i2, front + j1, front + j2)
        for tag, i1, i2, j1, j2 in middle.get_opcodes()
        if tag != "equal"
    ]


def _equal(pairs: Iterable[tuple[str, str]]) -> int:
    length = 0
    for left, right in pairs:
        if left != right:
            break
        length += 1
    return length


def _blocks(before: Sequence[str], hunks: Sequence[Hunk]) -> Iterator[Hunk]:
    """The hunks with their context, joined where they touch, each original standing once.

    The edges of a block lie in lines that are equal in both versions, so the newer lines follow
    from the hunks inside it.
    """
    for start, end in _spans(before, hunks):
        inside = [hunk for hunk in hunks if start <= hunk[0] and hunk[1] <= end]
        first, last = inside[0], inside[-1]
        yield start, end, first[2] - (first[0] - start), last[3] + (end - last[1])


def _spans(before: Sequence[str], hunks: Sequence[Hunk]) -> list[Span]:
    text = "\n".join(("", *before, ""))
    spans = [_widened((hunk[0], hunk[1]), len(before), CONTEXT) for hunk in hunks]
    while True:
        spans = _joined(spans)
        grown = [
            (start, end)
            if _stands_once(before[start:end], text)
            else _widened((start, end), len(before), end - start)
            for start, end in spans
        ]
        if grown == spans:
            return spans
        spans = grown


def _stands_once(lines: Sequence[str], text: str) -> bool:
    block = "\n".join(("", *lines, ""))
    return text.find(block, text.find(block) + 1) < 0


def _widened(span: Span, length: int, lines: int) -> Span:
    return max(0, span[0] - lines), min(length, span[1] + lines)


def _joined(spans: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def _reads_as_marker(line: str) -> bool:
    return line.rstrip() in (ORIGINAL, UPDATED)
