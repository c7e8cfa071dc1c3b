"""Fill a token budget with the files best worth reading, and put them in an order that lasts.

What is chosen: whole files by rank; in what is left of the budget, the best fit; and signatures of
what does not fit. No file is cut. A file that takes more than `LARGE` of the budget stands as its
skeleton too, rather than split into parts: a reader takes what stands under a path for the whole
file, a change would have to say which part it means, and the place where the user works in a large
file is in front of the model anyway, in the tail.

Where it stands: files unlikely to change first, hot ones last, so that a change has little behind
it. Cold files are ordered by heat as well, and equal ones by path, so that small differences in
rank move nothing.

Guarantees:
- The tokens of all segments are within the budget.
- Each file stands once, whole or as its skeleton, or is left out with a reason.
- A base that is packed again (`front`) keeps the longest front whose files are what they were: that
  much of the engine's work lasts. Ranks decide only about the rest.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from qcn_indexer.layout import Count, Layout, Segment
from qcn_indexer.ranking import Ranked
from qcn_indexer.skeleton import skeleton

LARGE = 1 / 8  # of the budget: what one file may take, so that a few never crowd out the rest
# Kept for signatures where not everything fits whole: they say what to call at a tenth of the
# tokens, so this much stands for about as many files as there are whole ones.
SIGNATURES = 1 / 10
# What hot files may take from a full front when a base is packed again: more made compaction dearer
# in the replay, and nothing else better.
ROOM = 1 / 4
# Files after the first that did not fit, which are tried for a gap or for their signatures. Further
# down, a file fills a gap with little that helps, and each try costs a count.
LOOK_AHEAD = 128


@dataclass(frozen=True, slots=True)
class Packing:
    """A base, and why the rest is not in it."""

    layout: Layout
    left_out: tuple[tuple[PurePosixPath, str], ...]


def pack(
    files: Sequence[Ranked], *, budget: int, count: Count, front: Sequence[Segment] = ()
) -> Packing:
    """Return the base of `files` (best first) that fits `budget` tokens."""
    count = functools.cache(count)
    kept = _lasting(front, files)
    left = _make_room(kept, files, budget, count)
    paths = {segment.path for segment in kept}
    choice = _Choice([file for file in files if file.path not in paths], left, budget, count)
    order = sorted(choice.taken, key=lambda file: (file.hot, file.heat, file.path))
    rest = [choice.taken[file] for file in order]
    return Packing(Layout((*kept, *rest)), tuple(choice.left_out()))


def _lasting(front: Sequence[Segment], files: Iterable[Ranked]) -> list[Segment]:
    """The segments from the first on that would read the same today."""
    texts = {file.path: file.text for file in files}
    kept: list[Segment] = []
    for segment in front:
        text = texts.get(segment.path)
        if text is not None and segment.kind == "skeleton":
            text = skeleton(segment.path, text)
        if text != segment.text:
            break
        kept.append(segment)
    return kept


def _make_room(kept: list[Segment], files: Iterable[Ranked], budget: int, count: Count) -> int:
    """Shorten the front from its end until the hot files behind it fit; return what is left.

    Without this a full front would keep a new file, which is all the user works on, out of the
    base.
    """
    sizes = {file.path: _whole(file).tokens(count) for file in files if file.hot}
    behind = sum(sizes.values()) - sum(sizes.get(segment.path, 0) for segment in kept)
    left = budget - sum(segment.tokens(count) for segment in kept)
    while kept and left < min(behind, int(budget * ROOM)):
        segment = kept.pop()
        left += segment.tokens(count)
        behind += sizes.get(segment.path, 0)
    return left


class _Choice:
    """What is taken of the files, in the order of their ranks."""

    def __init__(self, files: Sequence[Ranked], left: int, budget: int, count: Count) -> None:
        self._files, self._left, self._count = files, left, count
        self._large = int(budget * LARGE)
        self.taken: dict[Ranked, Segment] = {}
        self._too_large: set[Ranked] = set()
        first_out = self._by_rank(keeping=0)
        if first_out < len(files):
            self._left, self.taken = left, {}
            keeping = int(budget * SIGNATURES)
            first_out = self._by_rank(keeping=keeping)
            next_ones = files[first_out : first_out + LOOK_AHEAD]
            self._best_fit(next_ones, keeping=keeping)
            for file in next_ones:
                if file not in self.taken and (segment := _signatures(file)).text:
                    self._take(file, segment, keeping=0)
            self._best_fit(next_ones, keeping=0)

    def left_out(self) -> Iterator[tuple[PurePosixPath, str]]:
        """Each file that is not taken, with the reason."""
        for file in self._files:
            if not file.text:
                yield file.path, "it is empty"
            elif file in self._too_large:
                yield file.path, f"it takes more than {self._large} tokens, signatures alone too"
            elif file not in self.taken:
                yield file.path, "it ranks below what fits the budget"

    def _by_rank(self, *, keeping: int) -> int:
        """Take files until one does not fit; return where that is. A large one is no end.

        Hot files may use what is kept for signatures.
        """
        for i, file in enumerate(self._files):
            segment = _whole(file)
            if segment.tokens(self._count) > self._large:
                segment = _signatures(file)
                if not segment.text or segment.tokens(self._count) > self._large:
                    self._too_large.add(file)
                    continue
            keep = 0 if file.hot else keeping
            if file.text and not self._take(file, segment, keeping=keep):
                return i
        return len(self._files)

    def _best_fit(self, files: Sequence[Ranked], *, keeping: int) -> None:
        """Take whole files, the one first that leaves the smallest gap; ties by rank."""
        waiting = [file for file in files if file.text and file not in self.taken]
        sizes = {file: _whole(file).tokens(self._count) for file in waiting}
        for file in sorted(sizes, key=lambda file: -sizes[file]):
            if sizes[file] <= self._large:
                self._take(file, _whole(file), keeping=keeping)

    def _take(self, file: Ranked, segment: Segment, *, keeping: int) -> bool:
        tokens = segment.tokens(self._count)
        if tokens > self._left - keeping:
            return False
        self.taken[file] = segment
        self._left -= tokens
        return True


def _whole(file: Ranked) -> Segment:
    return Segment(file.path, file.text, "base", "file", file.hot)


def _signatures(file: Ranked) -> Segment:
    return Segment(file.path, skeleton(file.path, file.text), "base", "skeleton", file.hot)
