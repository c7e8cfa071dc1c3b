"""Prompt lookup: where the text at hand has stood before, and what followed there.

A completion often repeats what stands in front of it: a call as it is made elsewhere, a file that
is rewritten. So the last tokens are looked up in the prompt, repository and all, and what followed
them there is a guess at what comes now (prompt lookup decoding, Saxena 2023; inference with
reference, arXiv 2304.04487). It costs no second model; whether a guess is right the model says
(`speculation.py`).

Purpose. A prompt is a row of blocks (`grid.py`). Each distinct block is indexed once: by every
`GRAM` tokens in it, where they stand. Blocks are what the state cache shares between texts, so an
edit, another branch or a second window costs the blocks that are new, whatever the length of the
context; nothing is ever taken out of an index in the middle.

Guarantees
- A source is what stands in the prompt itself, or was generated behind it. Nothing that another
  layout, window or repository holds is ever proposed.
- What the layout says is superseded is never proposed: neither as a beginning nor further on.
- No control token is proposed.
- The same prompt and the same tokens behind it give the same proposals: nothing depends on what
  was indexed before, or on time.
- Bounded: `MOST_BLOCKS` blocks are kept, the most recently used.

Measured on one core of a busy machine, source in blocks of 512: to index a block 0.2 ms, which is
what an edit costs; a lookup 6 us in 32,768 tokens and 36 in 262,144, and none while a text goes on
as its source does. Rejected: a suffix automaton (1.5 us a token, 10 times the memory, and no way to
take an edit out of its middle); one table for the whole context (a lookup of 1 us; but an edit
moves all places behind it, 107 ms to make anew for 262,144); searching the bytes without an index
(a lookup of 330 us there).
"""

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

GRAM = 3
"""Tokens that must be alike for a place to be looked at."""
MOST_BLOCKS = 1024
"""Blocks whose index is kept; one of 512 tokens takes 35 kB."""
MOST_CANDIDATES = 16
"""Places that are compared with the text at hand, the nearest first."""
LONGEST_MATCH = 32
"""Tokens; of places that agree in so many the nearest is as good as any."""

_ID_BITS = 20


def _gram(a: int, b: int, c: int) -> int:
    """Three ids, each below 2²⁰, as one number."""
    return (a << 2 * _ID_BITS) | (b << _ID_BITS) | c


@dataclass(frozen=True, slots=True)
class _BlockIndex:
    """Where grams stand in a block, as offsets of the tokens behind them."""

    last: dict[int, int]  # by gram, its last place
    before: "array[int]"  # by a gram's place minus GRAM, its place before that, or 0

    @classmethod
    def of(cls, tokens: Sequence[int]) -> "_BlockIndex":
        last: dict[int, int] = {}
        before = array("h")
        grams = zip(tokens, tokens[1:], tokens[2:], strict=False)
        for place, (a, b, c) in enumerate(grams, start=GRAM):
            gram = _gram(a, b, c)
            before.append(last.get(gram, 0))
            last[gram] = place
        return cls(last, before)

    def places(self, gram: int) -> Iterator[int]:
        """The places behind a gram, the last one first."""
        place = self.last.get(gram, 0)
        while place:
            yield place
            place = self.before[place - GRAM]


class BlockIndexes:
    """The indexes of blocks, by what the blocks hold. Belongs to the model's thread."""

    def __init__(self) -> None:
        self._indexes: OrderedDict[bytes, _BlockIndex] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        """How many blocks are indexed."""
        return len(self._indexes)

    def lookup(
        self,
        pieces: Sequence[bytes],
        *,
        superseded: Sequence[tuple[int, int]] = (),
        control: Collection[int] = (),
    ) -> Generator[None, None, "Lookup"]:
        """Index what is new of a prompt, at most a block at each step; return the lookup in it.

        Args:
            pieces: the prompt's blocks, each as its 32-bit ids.
            superseded: spans of the prompt that say what is no longer so; ascending, apart.
            control: ids that are never proposed.
        """
        ids, blocks, indexed = array("i"), [], False
        for piece in pieces:
            if piece not in self._indexes:
                if indexed:
                    yield
                indexed = True
            blocks.append((len(ids), self._of(piece)))
            ids.frombytes(piece)
        return Lookup(ids, blocks, superseded, control)

    def _of(self, piece: bytes) -> _BlockIndex:
        index = self._indexes.pop(piece, None) or _BlockIndex.of(array("i", piece))
        self._indexes[piece] = index
        if len(self._indexes) > MOST_BLOCKS:
            self._indexes.popitem(last=False)
        return index

    def clear(self) -> None:
        """Forget all texts."""
        self._indexes.clear()


class Lookup:
    """The text of one request, prompt and what is generated behind it, and a place like its end.

    That place, the source, is kept as long as what is generated goes on as it does there.
    """

    def __init__(
        self,
        ids: "array[int]",
        blocks: Sequence[tuple[int, _BlockIndex]],
        superseded: Sequence[tuple[int, int]],
        control: Collection[int],
    ) -> None:
        """`BlockIndexes.lookup` makes it; `ids` becomes its own."""
        self.match = 0
        """Tokens in which the text's end agrees with what is in front of the source; 0: no source.

        `GRAM` to `LONGEST_MATCH`.
        """
        self._ids = ids
        self._blocks = blocks
        self._generated: dict[int, list[int]] = {}  # places behind grams that end behind the prompt
        self._superseded_from = [start for start, _ in superseded]
        self._superseded_to = [end for _, end in superseded]
        self._control = control
        self._source = 0
        self._find()

    def push(self, token: int) -> None:
        """Take the token that follows."""
        goes_on = self.match and self._ids[self._source] == token
        self._ids.append(token)
        if len(self._ids) >= GRAM:
            self._generated.setdefault(_gram(*self._ids[-GRAM:]), []).append(len(self._ids))
        if goes_on and self._is_source(self._source + 1):
            self._source += 1
            self.match = min(self.match + 1, LONGEST_MATCH)
        else:
            self._find()

    def proposed(self, most: int) -> list[int]:
        """The tokens that followed at the source, `most` at most; none where there is no source.

        Where the source reaches the text's end, the text is taken to go on in the same period.
        """
        tokens: list[int] = []
        if not self.match:
            return tokens
        end = len(self._ids)
        for place in range(self._source, self._source + most):
            if place >= end:
                tokens.append(tokens[place - end])
            elif self._is_source(place):
                tokens.append(self._ids[place])
            else:
                break
        return tokens

    def _find(self) -> None:
        """Look for the place that agrees with the text's end furthest; of equals, the nearest."""
        self.match = 0
        if len(self._ids) < GRAM:
            return
        for place in islice(self._places(_gram(*self._ids[-GRAM:])), MOST_CANDIDATES):
            match = self._agreement(place)
            if match > self.match:
                self._source, self.match = place, match
                if match == LONGEST_MATCH:
                    return

    def _places(self, gram: int) -> Iterator[int]:
        """Where one may go on from behind a gram, the nearest first."""
        for place in reversed(self._generated.get(gram, ())):
            if self._is_source(place):
                yield place
        for start, index in reversed(self._blocks):
            if gram in index.last:
                for place in index.places(gram):
                    if self._is_source(start + place):
                        yield start + place

    def _agreement(self, place: int) -> int:
        """In how many tokens what is in front of a place agrees with the text's end."""
        ids, end = self._ids, len(self._ids)
        most = min(LONGEST_MATCH, place)
        length = GRAM
        while length < most and ids[place - 1 - length] == ids[end - 1 - length]:
            length += 1
        return length

    def _is_source(self, place: int) -> bool:
        """Whether what stands at a place may be proposed."""
        if place >= len(self._ids) or self._ids[place] in self._control:
            return False
        span = bisect_right(self._superseded_from, place)
        return not (span and place < self._superseded_to[span - 1])
