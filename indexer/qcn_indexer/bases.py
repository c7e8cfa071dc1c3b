"""The last bases of a workspace folder, kept so that going back to one costs next to nothing.

A switch of branches changes so much at once that a new base is packed. Whoever switches back finds
the older base still fitting: with it, the layout begins as it did then, and the engine goes on from
what it has read of it instead of reading another order of the same files.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from qcn_indexer.layout import Segment
from qcn_indexer.snapshot import EMPTY, Snapshot, difference

# Two branches and what was packed on each since; every base more is one more snapshot in memory.
KEPT = 4


@dataclass(frozen=True, slots=True)
class Base:
    """A base, and what the workspace folder held when it was packed."""

    segments: tuple[Segment, ...]
    snapshot: Snapshot = field(repr=False)
    unlike_disk: frozenset[PurePosixPath]
    """Files that it shows with another text than the snapshot's: of a buffer, or just changed."""
    reasons: Mapping[PurePosixPath, tuple[str, ...]] = field(repr=False)
    """Why each file was chosen, the strongest reason first."""
    left_out: tuple[tuple[PurePosixPath, str], ...]
    """Files that may be read and are not in it, with the reason."""

    def changed_since(self, now: Snapshot) -> frozenset[PurePosixPath]:
        """Return the files whose text may not be what it was when this base was packed."""
        return self.unlike_disk.union(map(PurePosixPath, difference(self.snapshot, now).paths))


NOTHING = Base((), EMPTY, frozenset(), {}, ())
"""The base of a workspace folder that has not been looked at."""


class Bases:
    """The bases that were in force before the present one, at most `KEPT`."""

    def __init__(self) -> None:
        self._kept: deque[Base] = deque(maxlen=KEPT)

    def keep(self, base: Base) -> None:
        """Keep a base that is in force no longer; the oldest one may go for it."""
        self.drop(base)
        self._kept.append(base)

    def drop(self, base: Base) -> None:
        """Keep a base no longer, if it was kept."""
        self._kept = deque((one for one in self._kept if one is not base), KEPT)

    def forget(self) -> None:
        """Keep none: each may show what must not be shown any more."""
        self._kept.clear()

    def nearest(
        self, now: Snapshot, *, most: int
    ) -> Iterator[tuple[Base, frozenset[PurePosixPath]]]:
        """Yield the bases since which at most `most` files changed, with those, the fewest first.

        Of equal ones the newer comes first.
        """
        changed = [(base, base.changed_since(now)) for base in reversed(self._kept)]
        yield from sorted(
            (pair for pair in changed if len(pair[1]) <= most), key=lambda pair: len(pair[1])
        )
