"""Typing through a suggestion in an editor that closes brackets and quotes by itself.

Who types the `(` of `price(item)` finds `)` behind the cursor: the text has not departed from the
suggestion. What is left of it is what stands inside, for the rest of the line is there.

Pure functions on one line's worth of text; an escaped quote is taken for one that closes.
"""

from collections.abc import Iterator

from qcn_lsp.postprocess.lexical import CLOSER_OF

_QUOTES = frozenset("\"'`")


def closers_of(typed: str) -> str:
    """Return what an editor has put behind the cursor for what `typed` leaves open."""
    due, _ = [("", 0), *_followed(typed, "")][-1]
    return due[::-1]


def inside(rest: str, closers: str) -> str:
    """Return what of `rest` belongs in front of `closers`; nothing where that is several lines."""
    due = closers[::-1]
    for now, index in _followed(rest, due):
        if len(now) < len(due):
            rest = rest[:index]
            break
    return "" if "\n" in rest or "\r" in rest else rest.rstrip()


def _followed(text: str, due: str) -> Iterator[tuple[str, int]]:
    """Yield for each character the closers due behind it, innermost last, and its index."""
    for index, character in enumerate(text):
        if due and character == due[-1]:
            due = due[:-1]
        elif not (due and due[-1] in _QUOTES):  # inside a string all else is text
            due += CLOSER_OF.get(character, character if character in _QUOTES else "")
        yield due, index
