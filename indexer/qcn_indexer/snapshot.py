"""What a workspace folder holds, and how that differs from what it held before.

A snapshot maps each found file's path to its version. Two snapshots differ where
the digests do: a file that was touched, or saved as it was, has not changed. Texts are not kept.

Guarantees:
- Only files whose size or time differ from the known ones are read, and all of them if asked to,
  which finds what a file system's clock has hidden. A file that was written within `COARSE_NS` of
  being read is read again the next time, for it could change without its time doing so.
- What was read is never older than the size and time beside it, so a change in between is seen.
- A look at some places gives what a look at everything would have given, for those places.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qcn_indexer.read import Text, read_text
from qcn_indexer.walk import TOP, Found, walk

# The coarsest times of files in use: FAT's.
COARSE_NS = 2_000_000_000
NOTICED_EVERY = 100  # files: a few milliseconds' worth of reading


@dataclass(frozen=True, slots=True)
class Version:
    """One state of a file. Without a digest it is unfit, for the reason given."""

    size: int
    mtime_ns: int
    digest: bytes
    unfit: str = ""


class Snapshot(Mapping[str, Version]):
    """Versions by path below the workspace folder, with forward slashes. Immutable.

    They are kept folder by folder, and a later snapshot shares the folders that it did not look at,
    so that one changed file among 200,000 costs what its folder weighs.
    """

    def __init__(self, folders: Mapping[str, Mapping[str, Version]]) -> None:
        """`folders` are named as in paths, with a slash at the end, the topmost one by `""`."""
        self.folders = folders

    def __getitem__(self, path: str) -> Version:
        folder, name = _parted(path)
        return self.folders[folder][name]

    def __iter__(self) -> Iterator[str]:
        return (folder + name for folder, names in self.folders.items() for name in names)

    def __len__(self) -> int:
        return sum(map(len, self.folders.values()))


EMPTY = Snapshot({})


@dataclass(frozen=True, slots=True)
class Difference:
    """Paths in order. A renamed file has the text it had, and is neither added nor removed."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    @property
    def files(self) -> int:
        """How many files are another, have come or gone, or have another path."""
        return len(self.added) + len(self.changed) + len(self.removed) + len(self.renamed)

    @property
    def paths(self) -> frozenset[str]:
        """All of them, of a renamed file both."""
        renamed = (path for pair in self.renamed for path in pair)
        return frozenset((*self.added, *self.changed, *self.removed, *renamed))


def look_again(
    root: Path,
    known: Snapshot,
    places: Iterable[PurePosixPath] = (TOP,),
    *,
    by_content: bool = False,
    noticed: Callable[[int], None] = lambda files: None,
) -> Snapshot:
    """Return `known` with what is now at and below `places` of the workspace folder.

    With `by_content`, sizes and times are not trusted. `noticed` is told now and then how many
    files have been found, and may raise to end the look.
    """
    looked_at = set(places)
    above = {folder for place in looked_at for folder in place.parents}
    seen: dict[str, dict[str, Version]] = {}
    files = 0
    for item in walk(root, sorted(looked_at)):
        if item.path in above:  # it is left out, or a file now, and so nothing is below it
            looked_at.add(item.path)
        if isinstance(item, Found):
            path = str(item.path)
            folder, name = _parted(path)
            version = _version(root, item, None if by_content else known.get(path))
            seen.setdefault(folder, {})[name] = version
            files += 1
            if files % NOTICED_EVERY == 0:
                noticed(files)
    folders = _without(known.folders, looked_at)
    for folder, names in seen.items():
        now = {**folders.get(folder, {}), **names}
        before = known.folders.get(folder)
        folders[folder] = before if before == now else now  # so that it is shared
    return Snapshot(folders)


def _without(
    folders: Mapping[str, Mapping[str, Version]], places: set[PurePosixPath]
) -> dict[str, Mapping[str, Version]]:
    """Return the folders without what lies at or below the places."""
    if TOP in places:
        return {}
    below = tuple(f"{place}/" for place in places)
    kept = {folder: names for folder, names in folders.items() if not folder.startswith(below)}
    for folder, name in map(_parted, map(str, places)):
        if name in kept.get(folder, {}):
            kept[folder] = {other: found for other, found in kept[folder].items() if other != name}
    return {folder: names for folder, names in kept.items() if names}


def _version(root: Path, found: Found, known: Version | None) -> Version:
    if known and (known.size, known.mtime_ns) == (found.size, found.mtime_ns):
        return known
    trusted = time.time_ns() - found.mtime_ns > COARSE_NS
    mtime_ns = found.mtime_ns if trusted else -1
    read = read_text(root / found.path)
    if isinstance(read, Text):
        return Version(found.size, mtime_ns, read.digest)
    return Version(found.size, mtime_ns, b"", read.reason)


def difference(old: Snapshot, new: Snapshot) -> Difference:
    """Return what became of the fit files of `old`, and which of `new` are new."""
    touched = {
        folder
        for folder in old.folders.keys() | new.folders.keys()
        if old.folders.get(folder) is not new.folders.get(folder)
    }
    before, after = _digests(old, touched), _digests(new, touched)
    gone, come = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    renamed = _renamed({path: before[path] for path in gone}, {path: after[path] for path in come})
    sources, targets = {source for source, _ in renamed}, {target for _, target in renamed}
    both = sorted(before.keys() & after.keys())
    return Difference(
        added=tuple(path for path in come if path not in targets),
        changed=tuple(path for path in both if before[path] != after[path]),
        removed=tuple(path for path in gone if path not in sources),
        renamed=tuple(renamed),
    )


def _digests(snapshot: Snapshot, folders: set[str]) -> dict[str, bytes]:
    return {
        folder + name: version.digest
        for folder in folders
        for name, version in snapshot.folders.get(folder, {}).items()
        if version.digest
    }


def _renamed(gone: dict[str, bytes], come: dict[str, bytes]) -> list[tuple[str, str]]:
    """Pair what is gone with what has come of the same text, first where the name is the same."""
    pairs: dict[str, str] = {}
    for by_name in (True, False):
        taken = set(pairs.values())
        waiting: dict[tuple[bytes, str], list[str]] = {}
        for path in reversed(come):
            if path not in taken:
                key = come[path], _parted(path)[1] if by_name else ""
                waiting.setdefault(key, []).append(path)
        for path in gone:
            targets = waiting.get((gone[path], _parted(path)[1] if by_name else ""))
            if path not in pairs and targets:
                pairs[path] = targets.pop()
    return sorted(pairs.items())


def _parted(path: str) -> tuple[str, str]:
    """Return the folder of a path, with its slash, and the name in it."""
    folder, slash, name = path.rpartition("/")
    return folder + slash, name
