"""Where prefill cuts a prompt into blocks: a function of the tokens alone.

A block is what goes through all layers at once. How a product is rounded depends on how many rows
it has, so the state behind a text is the same, bit for bit, only when the text was cut at the same
places. Therefore the grid begins anew at each control token that opens a part of a prompt (a file,
a chat message): what stands in front of a part has no say in how the part is cut, and what is
behind a block's end has none in the block.

So a state at a block's end is as good as one that was read from nothing; one inside a block is not,
and is never kept. The price is a block's length at most, which is why blocks are short in the file
that is typed in: there the last block is read again at every keystroke. It is known by the control
tokens around its gap. Since a block costs more than its tokens, they open parts of their own only
where that saves something: behind a beginning that is long, and not between the text before the
gap and the text after it, which is read again whatever is typed.

No torch here: the service imports this module before torch is there.
"""

from array import array
from collections.abc import Iterator, Sequence

from qcn_inference.tokenizer import (
    FILE_SEP,
    FIM_PREFIX,
    FIM_SUFFIX,
    IM_START,
    REPO_NAME,
    Tokenizer,
)

BLOCK = 512
"""Tokens. A multiple of the delta rule's chunk; expert weights are read once for each block."""
TYPED_BLOCK = 128
"""Tokens. A keystroke reads at most that many again. Measured on qcn-nano, two quiet cores: blocks
of 64, 128 and 256 take 21, 30 and 42 ms, so that a first reading by 64 takes 1.4 times as long as
by 128, and a keystroke by 256 up to 1.4 times."""

LONG_BEGINNING = TYPED_BLOCK // 2
"""Tokens. More than a file's path takes."""

PART_OPENERS = (REPO_NAME, FILE_SEP, IM_START)
TYPED_OPENERS = (FIM_PREFIX, FIM_SUFFIX)


class Grid:
    """The grid of one tokenizer's ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        known = tokenizer.control_names  # not all where the model does not fill in the middle
        self._typed = frozenset(known[name] for name in TYPED_OPENERS if name in known)
        self._suffix = known.get(FIM_SUFFIX)
        self._openers = self._typed.union(known[name] for name in PART_OPENERS if name in known)

    def blocks(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Start and end of each block, in order; together they are `ids`."""
        parts = self._parts(ids)
        ends = [*(start for start, _ in parts[1:]), len(ids)]
        for (start, typed), end in zip(parts, ends, strict=True):
            size = TYPED_BLOCK if typed else BLOCK
            for at in range(start, end, size):
                yield at, min(at + size, end)

    def _parts(self, ids: Sequence[int]) -> list[tuple[int, bool]]:
        """Where each part begins, and whether it is typed in."""
        start, typed = 0, False
        parts = []
        for at, token in enumerate(ids):
            if token not in self._openers:
                continue
            after_prefix = typed and token == self._suffix
            if token in self._typed and (after_prefix or at - start < LONG_BEGINNING):
                typed = True
                continue
            if at:
                parts.append((start, typed))
            start, typed = at, token in self._typed
        return [*parts, (start, typed)]


def as_array(ids: Sequence[int]) -> "array[int]":
    """The ids as 32-bit integers, of which slices and bytes are cheap."""
    return ids if isinstance(ids, array) else array("i", ids)
