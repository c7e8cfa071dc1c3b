"""One workspace root as the model reads it: a base, and what changed since.

Everything here takes time (files are read, tokens are counted by the engine), so it runs on worker
threads; and all of it is pure state: who talks to the engine, and when, is `contexts.py`'s affair.

Guarantees
- Private: what is ignored, looks like a secret, or cannot be read as text is in no layout, neither
  from disk nor from an open buffer. What becomes so is taken out of base and overlay, and `purge`
  says that the engine must forget it.
- An open buffer counts for more than the disk: what is saved under it changes nothing. When it is
  closed, the disk counts again.

One call at a time. Another thread may read `layout` and `shown_whole` meanwhile: what they are made
of is replaced, never changed.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from qcn_indexer.history import history
from qcn_indexer.layout import Count, Layout, Segment
from qcn_indexer.overlay import Deleted, Event, Limits, Overlay, Renamed, Written
from qcn_indexer.packing import pack
from qcn_indexer.ranking import File, Ranked, rank
from qcn_indexer.read import Text, read_text
from qcn_indexer.secrets import looks_secret
from qcn_indexer.snapshot import EMPTY, Difference, difference, look_again
from qcn_indexer.walk import EMPTY_FILE, Found, Skipped, walk

logger = logging.getLogger(__name__)

COMMITS = 1_000  # of git's history: about a year of a busy project
OVERLAY_SHARE = 4  # this part of the budget is the overlay's
# Of a larger repository these are ranked, those written last first. Ranking looks into the text of
# each, and what is older seldom comes within the budget.
MOST_RANKED = 5_000

Texts = Mapping[PurePosixPath, str]


class Repository:
    """A root's base and overlay, within `budget` tokens as `count` counts them."""

    def __init__(self, root: Path, *, count: Count, budget: int) -> None:
        self.root = root
        self.purge = False
        """Whether the engine must forget what it has read; cleared by who has seen to it."""
        self._count = count
        self._budget = budget
        self._snapshot = EMPTY
        self._limits = Limits(budget=budget // OVERLAY_SHARE)
        self._overlay = Overlay.over((), limits=self._limits, count=count)
        self._buffers: set[PurePosixPath] = set()  # paths whose text here is an open buffer's
        self._allowed: dict[PurePosixPath, bool] = {}
        self.left_out: tuple[tuple[PurePosixPath, str], ...] = ()
        """Files that may be read and are not in the base, with the reason."""

    @property
    def layout(self) -> Layout:
        """What the model should read now."""
        return self._overlay.layout

    @property
    def shown_whole(self) -> frozenset[PurePosixPath]:
        """The files of which the layout shows all; of others at most their signatures."""
        shows = self._overlay.shows
        return frozenset(path for path, shown in shows.items() if shown.kind == "file")

    def read(self, buffers: Texts) -> None:
        """Read the root for the first time."""
        self._snapshot = look_again(self.root, EMPTY)
        self._overlay = self._packed(buffers, front=())
        self._buffers = {path for path in buffers if path in self._overlay.shows}

    def show(self, buffers: Texts, current: PurePosixPath | None = None) -> None:
        """Take in the open buffers, all but that of the `current` file, which the prompt holds."""
        for path in self._buffers - buffers.keys() - {current}:
            self._apply(self._event_of(path))
        self._buffers = {path for path in buffers if self._may_show(path)}
        for path in sorted(self._buffers - {current}):
            text = buffers[path]
            self._apply(Deleted(path) if looks_secret(path, text) else Written(path, text))

    def look(self, places: Iterable[PurePosixPath]) -> None:
        """Take in what is on disk at these places."""
        self._allowed.clear()
        old, self._snapshot = self._snapshot, look_again(self.root, self._snapshot, places)
        for event in self._events(difference(old, self._snapshot)):
            self._apply(event)
        for path in [path for path in self._buffers if not self._may_show(path)]:
            self._take_out(path)

    @property
    def compaction_due(self) -> bool:
        """Whether too much of the layout says what is no longer so."""
        return self._overlay.compaction_due() is not None

    def compacted(self, buffers: Texts) -> Overlay:
        """Return a new base with nothing behind it; `swap` puts it in force."""
        logger.info("%s: laid out anew: %s", self.root.name, self._overlay.compaction_due())
        return self._packed(buffers, front=self._overlay.base)

    def swap(self, new: Overlay, old: Layout) -> bool:
        """Put a new base in force, unless the layout has changed since it was made."""
        if self.layout != old:
            return False
        self._overlay = new
        return True

    def _packed(self, buffers: Texts, *, front: Sequence[Segment]) -> Overlay:
        # The last entry of an overlay may exceed its budget by half: one file takes no more.
        budget = self._budget - 3 * self._limits.budget // 2
        packing = pack(self._ranked(buffers), budget=budget, count=self._count, front=front)
        self.left_out = packing.left_out
        return Overlay.over(packing.layout.segments, limits=self._limits, count=self._count)

    def _ranked(self, buffers: Texts) -> list[Ranked]:
        fit = [
            (version.mtime_ns, path) for path, version in self._snapshot.items() if version.digest
        ]
        newest = sorted(fit, reverse=True)[:MOST_RANKED]
        files = []
        for _, name in newest:
            path = PurePosixPath(name)
            text = buffers.get(path)
            if text is None:
                found = read_text(self.root / path)
                if not isinstance(found, Text):
                    continue
                text = found.text
            if _is_plain(path):
                files.append(File(path, text, self._edited_at(path), path in buffers))
        past = history(self.root, commits=COMMITS)
        return rank(files, history=past, now=time.time())

    def _edited_at(self, path: PurePosixPath) -> float:
        try:
            return (self.root / path).stat().st_mtime
        except OSError:
            return 0.0

    def _events(self, found: Difference) -> Iterable[Event | None]:
        for old, new in found.renamed:
            yield Renamed(PurePosixPath(old), PurePosixPath(new))
            yield self._event_of(PurePosixPath(new))  # news only where the old one was not shown
        for name in (*found.removed, *found.changed, *found.added):
            path = PurePosixPath(name)
            if path not in self._buffers:
                yield self._event_of(path)

    def _event_of(self, path: PurePosixPath) -> Event | None:
        """What the disk says of a file; None where it must not be shown any more."""
        judged = next(iter(walk(self.root, [path])), None)
        if judged is None:
            return Deleted(path)
        if isinstance(judged, Skipped) and judged.reason == EMPTY_FILE:
            return Written(path, "")  # perhaps only for a moment, until its editor has written it
        found = read_text(self.root / path) if isinstance(judged, Found) else None
        if isinstance(found, Text):
            return Written(path, found.text) if _is_plain(path) else None
        self._take_out(path)
        return None

    def _apply(self, event: Event | None) -> None:
        if event is not None:
            self._overlay = self._overlay.after(event)

    def _take_out(self, path: PurePosixPath) -> None:
        """Remove a file that is still there and must not be shown any more."""
        shown = {segment.path for segment in self.layout.segments}
        if path in shown:
            self._overlay = self._overlay.without(path)
            self._buffers.discard(path)
            self.purge = True

    def _may_show(self, path: PurePosixPath) -> bool:
        if path not in self._allowed:
            judged = next(iter(walk(self.root, [path])), None)
            new = judged is None and not looks_secret(path, "")
            self._allowed[path] = _is_plain(path) and (new or isinstance(judged, Found))
        return self._allowed[path]


def _is_plain(path: PurePosixPath) -> bool:
    """Whether a path fits on one line, as the engine asks."""
    return not any(character in str(path) for character in "\r\n\0")
