"""The log of what changed since a base was read: pure transitions from event to event.

A base is frozen: while it lives, nothing in it moves. What changes afterwards is appended behind
it, as an overlay entry: the file in its new version, or its changed blocks when those are much
shorter (`blocks.py`), or a note that it was deleted, renamed, or grew too long. Whatever stands
later is current.

Guarantees, each a property test:
- Reading base and entries from first to last gives the text of every file shown whole, and the
  skeleton of every file shown as one.
- Saving a file again rewrites its entry as long as that is cheap: an entry goes when the tokens
  that stay behind it, and are then computed again, are within `Limits.rewrite`. So a hundred saves
  leave one entry (two where the file had to be said whole: that entry stays, and blocks upon it are
  rewritten, as long as they are much shorter), and a file that goes back to its base text leaves
  none. An entry further in front stays, superseded, and the newest version is appended.
- One event never changes what stands in front of the first entry it drops.
- After compaction nothing is superseded.

How a transition stays exact: an entry is only dropped together with every later entry of the same
files (a rename ties two files together), so what remains of a file is always a front part of its
own history; what it then lacks is worked out against the text a reader of that part would know.

Superseded tokens are all that stands in the layout beyond one copy of what is current: old texts,
lines quoted as original, notes. A model may bring such lines back, so their share is capped, and
`compaction_due` tells when it is reached.

A file that the layout does not show, and whose text no event gave, is nobody's to delete or to
rename: such events change nothing.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from qcn_indexer.blocks import change_text
from qcn_indexer.layout import Count, Kind, Layout, Segment
from qcn_indexer.packing import pack
from qcn_indexer.ranking import Ranked
from qcn_indexer.skeleton import skeleton

# Blocks take a file's change out of its place, and quote it twice. They are worth it when they take
# at most half of what the file takes whole.
SHORTER = 2
# At most one token in eight may say what is no longer so. To be set by measurement once a model is
# asked how often it brings a deleted line back.
SUPERSEDED_CAP = 1 / 8
# One file takes at most half of the overlay, so that one save never fills it.
FILE_SHARE = 2

DELETED = "(deleted)\n"
TOO_LONG = "(changed; too long to be shown)\n"


@dataclass(frozen=True, slots=True)
class Written:
    """A file was created, saved, or changed in an open buffer: this is its text now."""

    path: PurePosixPath
    text: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """A file is gone."""

    path: PurePosixPath


@dataclass(frozen=True, slots=True)
class Renamed:
    """A file has another path, and the text it had. What stood at the new path is gone."""

    old: PurePosixPath
    new: PurePosixPath


Event = Written | Deleted | Renamed


@dataclass(frozen=True, slots=True)
class Limits:
    """What an overlay may cost, in tokens."""

    budget: int  # of all entries together
    # Behind an old entry, what may be computed again to be rid of it: one prefill block. In the
    # replay of six histories more than that cost every save something, and saved no compactions.
    rewrite: int = 512


@dataclass(frozen=True, slots=True)
class Shown:
    """What a reader knows of a file: its text, its skeleton, or only that it is too long."""

    kind: Kind
    text: str
    tokens: int = field(compare=False)  # of showing just this, once


Known = Mapping[PurePosixPath, Shown]


@dataclass(frozen=True, slots=True)
class Entry:
    """A segment behind the base, and what it makes known."""

    segment: Segment
    tokens: int
    makes: tuple[tuple[PurePosixPath, Shown | None], ...]  # None: the file is gone

    @property
    def paths(self) -> frozenset[PurePosixPath]:
        """The files whose history it is part of: two for a rename."""
        return frozenset(path for path, _ in self.makes)

    @property
    def rename(self) -> tuple[PurePosixPath, PurePosixPath] | None:
        """The old and the new path, of a rename's note."""
        return (self.makes[0][0], self.makes[1][0]) if len(self.makes) > 1 else None


@dataclass(frozen=True, slots=True)
class Overlay:
    """A base and the entries behind it."""

    base: tuple[Segment, ...]
    base_shows: Known = field(repr=False)
    entries: tuple[Entry, ...]
    shows: Known = field(repr=False)  # what a reader of everything takes for current
    limits: Limits
    count: Count = field(repr=False)

    @classmethod
    def over(cls, base: Sequence[Segment], *, limits: Limits, count: Count) -> "Overlay":
        """Return the overlay of a base that nothing has changed since."""
        shows = {
            segment.path: Shown(segment.kind, segment.text, segment.tokens(count))
            for segment in base
        }
        return cls(tuple(base), shows, (), shows, limits, count)

    @property
    def layout(self) -> Layout:
        """What the model reads now."""
        return Layout(self.base + tuple(entry.segment for entry in self.entries))

    @property
    def tokens(self) -> int:
        """Of all entries."""
        return sum(entry.tokens for entry in self.entries)

    @property
    def superseded_share(self) -> float:
        """The part of the layout's tokens that says what is no longer so."""
        everything = self.tokens + sum(shown.tokens for shown in self.base_shows.values())
        current = sum(shown.tokens for shown in self.shows.values())
        return max(0, everything - current) / everything if everything else 0.0

    def after(self, event: Event) -> "Overlay":
        """Return the overlay after one event."""
        wanted = self._wanted(event)
        if all(self.shows.get(path) == shown for path, shown in wanted.items()):
            return self
        anew, tokens = self._said(event, wanted, since=0)
        whole = _last_whole(self.entries, wanted.keys())
        if whole is None or not isinstance(event, Written):
            return anew
        upon_it, fewer = self._said(event, wanted, since=whole + 1)
        blocks = upon_it.entries[-1].segment.kind == "change"
        return upon_it if blocks and SHORTER * fewer <= tokens else anew

    def _said(
        self, event: Event, wanted: dict[PurePosixPath, Shown | None], *, since: int
    ) -> tuple["Overlay", int]:
        """The overlay that says what is wanted, having dropped what it may of the entries since.

        And the tokens of what it appends.
        """
        dropped, paths = _droppable(self.entries, wanted.keys(), self.limits.rewrite, since)
        kept = tuple(entry for i, entry in enumerate(self.entries) if i not in dropped)
        known = _known(self.base_shows, kept, paths)
        target = {path: self.shows.get(path) for path in paths} | wanted
        renames = [rename for i in sorted(dropped) if (rename := self.entries[i].rename)]
        if isinstance(event, Renamed):
            renames.append((event.old, event.new))
        added = list(self._missing(known, target, _origins(renames)))
        shows = {path: shown for path, shown in self.shows.items() if path not in paths}
        said = replace(self, entries=(*kept, *added), shows=shows | known)
        return said, sum(entry.tokens for entry in added)

    def compaction_due(self) -> str | None:
        """Return why the overlay should be folded into a new base, or None."""
        if self.tokens > self.limits.budget:
            return f"the overlay holds {self.tokens} tokens of {self.limits.budget}"
        if self.superseded_share > SUPERSEDED_CAP:
            return f"{self.superseded_share:.0%} of the context say what is no longer so"
        return None

    def compacted(self, files: Sequence[Ranked], *, budget: int) -> "Overlay":
        """Return a new base of the files as they are now, best first, with nothing behind it.

        The old base's front keeps its places as long as its files are what they were; what was
        changed lately is hot by its facts, and goes last.
        """
        packing = pack(files, budget=budget, count=self.count, front=self.base)
        return Overlay.over(packing.layout.segments, limits=self.limits, count=self.count)

    def without(self, path: PurePosixPath) -> "Overlay":
        """Return the overlay with a file gone from base and entries, not only superseded.

        For a file that became ignored or turned out to hold a secret. A file that it was renamed
        from or to held the same text, and goes too.
        """
        _, linked = _droppable(self.entries, {path}, self.tokens, since=0)
        return replace(
            self,
            base=tuple(segment for segment in self.base if segment.path not in linked),
            base_shows={at: shown for at, shown in self.base_shows.items() if at not in linked},
            entries=tuple(entry for entry in self.entries if not entry.paths & linked),
            shows={at: shown for at, shown in self.shows.items() if at not in linked},
        )

    def _wanted(self, event: Event) -> dict[PurePosixPath, Shown | None]:
        """What is to be known after the event, of the files that it names."""
        match event:
            case Written(path, text):
                whole = Segment(path, text, "overlay", "file")
                return {path: Shown("file", text, whole.tokens(self.count))}
            case Renamed(old, new) if old in self.shows and old != new:
                return {old: None, new: self.shows[old]}
            case Deleted(path):
                return {path: None}
        return {}

    def _missing(
        self,
        known: dict[PurePosixPath, Shown],
        target: Mapping[PurePosixPath, Shown | None],
        origins: Mapping[PurePosixPath, PurePosixPath],
    ) -> Iterator[Entry]:
        """The entries that lead from `known`, which follows along, to `target`."""
        for new, old in origins.items():
            moved = old in known and target[old] is None and target[new] is not None
            if moved and known.get(new) != target[new]:
                known[new] = known.pop(old)
                makes = ((old, None), (new, known[new]))
                yield self._entry(Segment(old, f"(renamed to {new})\n", "overlay", "note"), makes)
        for path, shown in target.items():
            if shown is None:
                if known.pop(path, None):
                    note = Segment(path, DELETED, "overlay", "note")
                    yield self._entry(note, ((path, None),))
            elif entry := self._news(path, known.get(path), shown):
                yield entry
                known |= {at: makes for at, makes in entry.makes if makes}

    def _news(self, path: PurePosixPath, known: Shown | None, shown: Shown) -> Entry | None:
        """The entry that makes `shown` of what is known: blocks, the whole, or its skeleton."""
        if known == shown:
            return None
        whole = self._entry(Segment(path, shown.text, "overlay", shown.kind), ((path, shown),))
        if shown.kind != "file":
            return whole
        most = self.limits.budget // FILE_SHARE
        if known and known.kind == "file" and (blocks := change_text(known.text, shown.text)):
            change = self._entry(Segment(path, blocks, "overlay", "change"), ((path, shown),))
            much_shorter = SHORTER * change.tokens <= whole.tokens or whole.tokens > most
            if much_shorter and change.tokens <= most:
                return change
        if whole.tokens <= most:
            return whole
        return self._in_short(path, shown.text, known, most)

    def _in_short(
        self, path: PurePosixPath, text: str, known: Shown | None, most: int
    ) -> Entry | None:
        """The skeleton of a file that is too long, or else a note; nothing where that is known."""
        outline = skeleton(path, text)
        segment = Segment(path, outline, "overlay", "skeleton")
        if not outline or segment.tokens(self.count) > most:
            segment = Segment(path, TOO_LONG, "overlay", "note")
        shown = Shown(segment.kind, segment.text, segment.tokens(self.count))
        return None if shown == known else self._entry(segment, ((path, shown),))

    def _entry(
        self, segment: Segment, makes: tuple[tuple[PurePosixPath, Shown | None], ...]
    ) -> Entry:
        return Entry(segment, segment.tokens(self.count), makes)


def _droppable(
    entries: Sequence[Entry], paths: Collection[PurePosixPath], rewrite: int, since: int
) -> tuple[set[int], set[PurePosixPath]]:
    """Return which entries of `paths` may go, and the files that are then to be said anew.

    From the newest back, as long as what stays behind is within `rewrite` tokens. A rename that
    goes takes the entries of its other file along, so the search starts again with that file.
    """
    files = set(paths)
    while True:
        behind, dropped, reached = 0, set[int](), set(files)
        for i in reversed(range(since, len(entries))):
            if behind > rewrite:
                break
            if entries[i].paths & files:
                dropped.add(i)
                reached |= entries[i].paths
            else:
                behind += entries[i].tokens
        if reached == files:
            return dropped, files
        files = reached


def _last_whole(entries: Sequence[Entry], paths: Collection[PurePosixPath]) -> int | None:
    """Where one of these files was last said whole."""
    for i in reversed(range(len(entries))):
        if entries[i].segment.kind == "file" and entries[i].segment.path in paths:
            return i
    return None


def _known(
    base: Known, entries: Iterable[Entry], paths: Collection[PurePosixPath]
) -> dict[PurePosixPath, Shown]:
    """What a reader of the base and these entries takes for current, of these files."""
    known = {path: base.get(path) for path in paths}
    for entry in entries:
        known |= {path: shown for path, shown in entry.makes if path in paths}
    return {path: shown for path, shown in known.items() if shown}


def _origins(
    renames: Iterable[tuple[PurePosixPath, PurePosixPath]],
) -> dict[PurePosixPath, PurePosixPath]:
    """From where each file came by a chain of renames."""
    origins: dict[PurePosixPath, PurePosixPath] = {}
    for old, new in renames:
        origins[new] = origins.pop(old, old)
    return {new: old for new, old in origins.items() if new != old}
