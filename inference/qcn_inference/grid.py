"""Where prefill cuts a prompt into blocks: a function of the tokens alone.

A block is what goes through all layers at once. How a product is rounded depends on how many rows
it has, so the state behind a text is the same, bit for bit, only when the text was cut at the same
places. Therefore the grid begins anew at each control token that opens a part of a prompt (a file,
a chat message, the text before or after a gap): what stands in front of a part has no say in how
the part is cut, and what is behind a block's end has none in the block.

So a state at a block's end is as good as one that was read from nothing; one inside a block is not,
and is never kept. The price is a block's length at most, which is why blocks are short in the parts
that are typed in: there the last block is read again at every keystroke.

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

PART_OPENERS = (REPO_NAME, FILE_SEP, IM_START, FIM_PREFIX, FIM_SUFFIX)
TYPED_OPENERS = (FIM_PREFIX, FIM_SUFFIX)


class Grid:
    """The grid of one tokenizer's ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._openers = frozenset(map(tokenizer.control_id, PART_OPENERS))
        self._typed = frozenset(map(tokenizer.control_id, TYPED_OPENERS))

    def blocks(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Start and end of each block, in order; together they are `ids`."""
        starts = [at for at, token in enumerate(ids) if token in self._openers]
        if not starts or starts[0]:
            starts.insert(0, 0)
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            size = TYPED_BLOCK if start < end and ids[start] in self._typed else BLOCK
            for at in range(start, end, size):
                yield at, min(at + size, end)


def as_array(ids: Sequence[int]) -> "array[int]":
    """The ids as 32-bit integers, of which slices and bytes are cheap."""
    return ids if isinstance(ids, array) else array("i", ids)
