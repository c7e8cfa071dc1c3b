"""One workspace root as the model reads it: a base, and what changed since.

Everything here takes time (files are read, tokens are counted by the engine), so it runs on worker
threads; and all of it is pure state: who talks to the engine, and when, is `contexts.py`'s affair.

Guarantees
- Private: what is ignored, looks like a secret, or cannot be read as text is in no layout, neither
  from disk nor from an open buffer. What becomes so is taken out of base and overlay, and `purge`
  says that the engine must forget it.
- An open buffer counts for more than the disk: what is saved under it changes nothing. When it is
  closed, the disk counts again.
- Going back costs little: where an earlier base fits what is on disk now better than a new one
  would (a branch that one returns to), that base is taken again.

One call at a time. Another thread may read `layout` and `shown_whole` meanwhile: what they are made
of is replaced, never changed.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from qcn_indexer.bases import NOTHING, Base, Bases
from qcn_indexer.history import history
from qcn_indexer.ignore import UserRules, user_rules
from qcn_indexer.imports import KnownImports
from qcn_indexer.layout import Count, Layout, Segment
from qcn_indexer.open_files import withheld
from qcn_indexer.overlay import Deleted, Event, Limits, Overlay, Renamed, Shown, Written
from qcn_indexer.packing import pack
from qcn_indexer.ranking import File, Ranked, likeliest, rank
from qcn_indexer.read import Text, digest_of, read_text
from qcn_indexer.secrets import looks_secret
from qcn_indexer.snapshot import EMPTY, Difference, Snapshot, difference, look_again
from qcn_indexer.superseded import superseded_lines
from qcn_indexer.walk import EMPTY_FILE, Found, Skipped, walk

logger = logging.getLogger(__name__)

COMMITS = 1_000  # of git's history: about a year of a busy project
OVERLAY_SHARE = 4  # this part of the budget is the overlay's
# Of a larger repository these are ranked, which needs the text of each; `likeliest` chooses them
# without reading any.
MOST_RANKED = 5_000
# Files that change at once and are still told one by one, at some ten milliseconds each. More than
# that is a branch switched or a tree rewritten, and asks for another base.
MOST_EVENTS = 100

Texts = Mapping[PurePosixPath, str]
Report = Callable[[str], None]
"""Hears how far the first reading is, and may raise to end it."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """A base that may be put in force, what is behind it, and what was on disk when it was made."""

    base: Base
    overlay: Overlay
    seen: Snapshot = field(repr=False)


class Repository:
    """A root's base and overlay, within `budget` tokens as `count` counts them."""

    def __init__(self, root: Path, *, count: Count, budget: int) -> None:
        self.root = root
        self.purge = False
        """Whether the engine must forget what it has read; cleared by who has seen to it."""
        self.outdated = False
        """Whether so much changed at once that the layout waits for a new base to be true again."""
        self._count = count
        self._budget = budget
        self._snapshot = EMPTY
        self._limits = Limits(budget=budget // OVERLAY_SHARE)
        self._base = NOTHING
        self._bases = Bases()
        self._imports = KnownImports()
        self._overlay = self._over(self._base)
        self._buffers: set[PurePosixPath] = set()  # paths whose text here is an open buffer's
        self._said: dict[PurePosixPath, tuple[str, Shown | None]] = {}  # of those, and what showed
        self._allowed: dict[PurePosixPath, bool] = {}
        self._users: UserRules | None = None  # asked of git once between two looks at the disk

    @property
    def layout(self) -> Layout:
        """What the model should read now."""
        return self._overlay.layout

    @property
    def superseded(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each segment of the layout the spans of lines that say what is no longer so."""
        return superseded_lines(self._overlay)

    @property
    def left_out(self) -> tuple[tuple[PurePosixPath, str], ...]:
        """Files that may be read and are not in the base, with the reason."""
        return self._base.left_out

    @property
    def shown_whole(self) -> frozenset[PurePosixPath]:
        """The files of which the layout shows all; of others at most their signatures."""
        shows = self._overlay.shows
        return frozenset(path for path, shown in shows.items() if shown.kind == "file")

    def reasons(self, segment: Segment) -> tuple[str, ...]:
        """Return why a segment of the layout is there."""
        if segment.zone == "base":
            return self._base.reasons.get(segment.path, ())
        if segment.kind == "note":
            return (segment.text.strip(),)
        known = segment.path in self._overlay.base_shows
        what = {"change": "its changed blocks", "skeleton": "too long: its signatures"}
        return ("changed" if known else "new", what.get(segment.kind, "the whole file"))

    def edited_at(self, path: PurePosixPath) -> float:
        """Return when a file was last written, in seconds since the epoch; 0 where it is gone."""
        try:
            return (self.root / path).stat().st_mtime
        except OSError:
            return 0.0

    def read(self, buffers: Texts, report: Report = lambda stage: None) -> None:
        """Read the root for the first time."""

        def found(files: int) -> None:
            report(f"{files:,} files found")

        self._snapshot = look_again(self.root, EMPTY, noticed=found)
        found(len(self._snapshot))
        self._base = self._packed(buffers, self._snapshot, report)
        self._overlay = self._over(self._base)
        self._buffers = {path for path in buffers if path in self._overlay.shows}

    def show(self, buffers: Texts, current: PurePosixPath | None = None) -> None:
        """Take in the open buffers, all but that of the `current` file, which the prompt holds."""
        for path in self._buffers - buffers.keys() - {current}:
            self._apply(self._event_of(path))
        self._buffers = {path for path in buffers if self._may_show(path)}
        said, self._said = self._said, {}
        for path in sorted(self._buffers - {current}):
            text = buffers[path]
            # What is shown since the same text was said needs neither be judged nor counted again.
            if said.get(path) != (text, self._overlay.shows.get(path)):
                self._apply(Deleted(path) if looks_secret(path, text) else Written(path, text))
            self._said[path] = text, self._overlay.shows.get(path)

    def look(self, places: Iterable[PurePosixPath], *, by_content: bool = False) -> Snapshot:
        """Return what is on disk, with a new look at these places; `take_in` takes it in.

        `by_content`: whatever sizes and times say. Changes nothing here, and takes long where the
        places hold much.
        """
        return look_again(self.root, self._snapshot, places, by_content=by_content)

    def take_in(self, now: Snapshot) -> None:
        """Show what is on disk now, or be `outdated` where too much has changed at once."""
        self._allowed.clear()
        self._users = None
        before, self._snapshot = self._snapshot, now
        found = difference(before, now)
        if found.files > MOST_EVENTS:
            self.outdated = True
            gone = map(PurePosixPath, (*found.removed, *(old for old, _ in found.renamed)))
            if any(path in self._overlay.shows and self._is_there(path) for path in gone):
                self._must_forget()
            return
        for event in self._events(found):
            self._apply(event)
        # An empty file is in no snapshot, so no difference tells when it goes.
        shows = self._overlay.shows.items()
        for path in [path for path, shown in shows if not shown.text]:
            if path not in self._buffers:
                self._apply(self._event_of(path))
        for path in [path for path in self._buffers if not self._may_show(path)]:
            self._take_out(path)
        self._take_out_what_was_there()

    def judge_given(self, paths: Iterable[PurePosixPath]) -> None:
        """Note that the engine must forget, where it was given a file that is not to be read now.

        By another process, before this one: what became ignored since is in no layout, but on disk.
        """
        if next(self._unfit(paths), None) is not None:
            self._must_forget()

    def _take_out_what_was_there(self) -> None:
        """Take out files that are not to be read now, of which no difference tells.

        They were gone before they became ignored or came back unfit: their old text is still shown.
        """
        shown = {segment.path for segment in self.layout.segments} - self._buffers
        for path in self._unfit(shown):
            self._take_out(path)

    def _unfit(self, paths: Iterable[PurePosixPath]) -> Iterator[PurePosixPath]:
        """Yield the files that are not to be read now; one that is just gone is not among them."""
        versions = {path: self._snapshot.get(str(path)) for path in paths}
        for path, version in versions.items():
            if not (version and version.digest) and (version or self._withheld(path)):
                yield path

    @property
    def compaction_due(self) -> bool:
        """Whether too much of the layout says what is no longer so."""
        return self.outdated or self._overlay.compaction_due() is not None

    def compacted(self, buffers: Texts) -> Compacted:
        """Return another base, and what is behind it; `swap` puts them in force."""
        seen = self._snapshot  # others are taken in meanwhile
        why = "much has changed at once" if self.outdated else self._overlay.compaction_due()
        if earlier := self._earlier(seen):
            logger.info("%s: laid out as before: %s", self.root.name, why)
            return Compacted(*earlier, seen)
        logger.info("%s: laid out anew: %s", self.root.name, why)
        base = self._packed(buffers, seen)
        return Compacted(base, self._over(base), seen)

    def swap(self, new: Compacted, old: Layout) -> bool:
        """Put a base in force, unless the layout, or what it shows, has changed meanwhile."""
        if self.layout != old:
            return False
        # Of a file that only the new base shows, the present layout does not tell that it is gone,
        # or must not be shown any more.
        changed = difference(new.seen, self._snapshot).paths
        if any(str(path) in changed for path in new.overlay.shows):
            return False
        if not self.purge:
            self._bases.keep(self._base)
        self._base, self._overlay = new.base, new.overlay
        self._buffers |= new.base.unlike_disk  # of buffers that may be closed by now
        self._bases.drop(self._base)
        self.outdated = False
        return True

    def _earlier(self, now: Snapshot) -> tuple[Base, Overlay] | None:
        """The earlier base with the least behind it, where that leaves room for changes to come."""
        fitting = []
        for base, changed in self._bases.nearest(now, most=MOST_EVENTS):
            overlay = self._brought_up(base, changed)
            if overlay is None:
                return None  # and no base is kept any more
            if not overlay.compaction_due():
                fitting.append((base, overlay))
        best = min(fitting, key=lambda pair: pair[1].tokens, default=None)
        return best if best and 2 * best[1].tokens <= self._limits.budget else None

    def _brought_up(self, base: Base, changed: Iterable[PurePosixPath]) -> Overlay | None:
        """What must be said behind a base; None where it shows what must not be shown any more.

        Of open buffers `show` says it, before the next completion.
        """
        overlay = self._over(base)
        for path in sorted(filter(_is_plain, changed)):
            if path in self._buffers and self._may_show(path):
                continue
            if event := self._event_at(path):
                overlay = overlay.after(event)
            elif path in overlay.shows:
                self._must_forget()
                return None
        return overlay

    def _over(self, base: Base) -> Overlay:
        return Overlay.over(base.segments, limits=self._limits, count=self._count)

    def _packed(
        self, buffers: Texts, snapshot: Snapshot, report: Report = lambda stage: None
    ) -> Base:
        # The last entry of an overlay may exceed its budget by half: one file takes no more.
        budget = self._budget - 3 * self._limits.budget // 2
        files = self._ranked(buffers, snapshot, report)
        report(f"choosing from {len(files):,} files")
        packing = pack(files, budget=budget, count=self._count, front=self._overlay.base)
        segments = packing.layout.segments
        paths = {segment.path for segment in segments}
        chosen = [file for file in files if file.path in paths]
        return Base(
            segments,
            snapshot,
            frozenset(file.path for file in chosen if not _stands_in(snapshot, file)),
            {file.path: file.reasons for file in chosen},
            packing.left_out,
        )

    def _ranked(self, buffers: Texts, snapshot: Snapshot, report: Report) -> list[Ranked]:
        past = history(self.root, commits=COMMITS)
        times = {
            path: version.mtime_ns / 1e9 for path, version in snapshot.items() if version.digest
        }
        opened = {str(path) for path in buffers}
        files = []
        chosen = likeliest(times, opened=opened, history=past, now=time.time(), at_most=MOST_RANKED)
        for name in chosen:
            path = PurePosixPath(name)
            text = buffers.get(path)
            if text is None:
                found = read_text(self.root / path)
                if not isinstance(found, Text):
                    continue
                text = found.text
            elif looks_secret(path, text):
                continue
            if _is_plain(path):
                files.append(File(path, text, self.edited_at(path), path in buffers))
            if len(files) % 100 == 0:
                report(f"{len(files):,} files read")
        report(f"ranking {len(files):,} files")
        return rank(files, history=past, now=time.time(), imports=self._imports.of)

    def _events(self, found: Difference) -> Iterable[Event | None]:
        for old, new in found.renamed:
            yield Renamed(PurePosixPath(old), PurePosixPath(new))
            yield self._event_of(PurePosixPath(new))  # news only where the old one was not shown
        for name in (*found.removed, *found.changed, *found.added):
            path = PurePosixPath(name)
            if path not in self._buffers:
                yield self._event_of(path)

    def _event_of(self, path: PurePosixPath) -> Event | None:
        """What the disk says of a file; one that must not be shown any more is taken out."""
        event = self._event_at(path)
        if event is None:
            self._take_out(path)
        return event

    def _event_at(self, path: PurePosixPath) -> Event | None:
        """What the disk says of a file; None where it must not be shown."""
        judged = next(iter(walk(self.root, [path], self._user_rules())), None)
        if judged is None:
            return Deleted(path)
        if isinstance(judged, Skipped) and judged.reason == EMPTY_FILE:
            return Written(path, "")  # perhaps only for a moment, until its editor has written it
        found = read_text(self.root / path) if isinstance(judged, Found) else None
        return Written(path, found.text) if isinstance(found, Text) and _is_plain(path) else None

    def _apply(self, event: Event | None) -> None:
        if event is not None:
            self._overlay = self._overlay.after(event)

    def _take_out(self, path: PurePosixPath) -> None:
        """Remove a file that must not be shown any more, under this name."""
        shown = {segment.path for segment in self.layout.segments}
        if path in shown:
            self._overlay = self._overlay.without(path)
            self._base = replace(self._base, segments=self._overlay.base)
            self._buffers.discard(path)
            self._must_forget()

    def _must_forget(self) -> None:
        """Note that what the engine has read, or an earlier base, shows what it must not."""
        self.purge = True
        self._bases.forget()

    def _is_there(self, path: PurePosixPath) -> bool:
        return os.path.lexists(self.root / path)

    def _may_show(self, path: PurePosixPath) -> bool:
        if path not in self._allowed:
            self._allowed[path] = _is_plain(path) and self._withheld(path) is None
        return self._allowed[path]

    def _withheld(self, path: PurePosixPath) -> str | None:
        return withheld(self.root, path, self._user_rules())

    def _user_rules(self) -> UserRules:
        if self._users is None:
            self._users = user_rules(self.root)
        return self._users


def _stands_in(snapshot: Snapshot, file: Ranked) -> bool:
    """Whether the file's text is the one that the snapshot names."""
    version = snapshot.get(str(file.path))
    return version is not None and version.digest == digest_of(file.text)


def _is_plain(path: PurePosixPath) -> bool:
    """Whether a path fits on one line, as the engine asks."""
    return not any(character in str(path) for character in "\r\n\0")
