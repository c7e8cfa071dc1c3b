"""What a workspace folder holds, and how that differs from what it held before.

A snapshot is a plain mapping from each found file's path to its version. Two snapshots differ where
the digests do: a file that was touched, or saved as it was, has not changed. Texts are not kept.

Guarantees:
- Only files whose size or time differ from the known ones are read, and all of them if asked to,
  which finds what a file system's clock has hidden. A file that was written within `COARSE_NS` of
  being read is read again the next time, for it could change without its time doing so.
- What was read is never older than the size and time beside it, so a change in between is seen.
- A look at some places gives what a look at everything would have given, for those places.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qcn_indexer.read import Text, read_text
from qcn_indexer.walk import TOP, Found, walk

# The coarsest times of files in use: FAT's.
COARSE_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Version:
    """One state of a file. Without a digest it is unfit, for the reason given."""

    size: int
    mtime_ns: int
    digest: bytes
    unfit: str = ""


# By path below the workspace folder, with forward slashes: strings, for there may be 200,000.
Snapshot = Mapping[str, Version]
EMPTY: Snapshot = {}


@dataclass(frozen=True, slots=True)
class Difference:
    """Paths in order. A renamed file has the text it had, and is neither added nor removed."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()


def look_again(
    root: Path,
    known: Snapshot,
    places: Iterable[PurePosixPath] = (TOP,),
    *,
    by_content: bool = False,
) -> Snapshot:
    """Return `known` with what is now at and below `places` of the workspace folder.

    With `by_content`, sizes and times are not trusted.
    """
    seen: dict[str, Version] = {}
    looked_at = set(places)
    for place in sorted(looked_at):
        for item in walk(root, place):
            if not item.path.is_relative_to(place):  # a folder above it is left out
                looked_at.add(item.path)
            if isinstance(item, Found):
                path = str(item.path)
                seen[path] = _version(root, item, None if by_content else known.get(path))
    if TOP in looked_at:
        return seen
    folders = tuple(f"{place}/" for place in looked_at)
    files = {str(place) for place in looked_at}
    rest = {
        path: version
        for path, version in known.items()
        if path not in files and not path.startswith(folders)
    }
    return rest | seen


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
    before = {path: version.digest for path, version in old.items() if version.digest}
    after = {path: version.digest for path, version in new.items() if version.digest}
    removed, added = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    renamed = _renamed(
        {path: before[path] for path in removed}, {path: after[path] for path in added}
    )
    sources, targets = dict(renamed).keys(), {target for _, target in renamed}
    return Difference(
        added=tuple(path for path in added if path not in targets),
        changed=tuple(
            sorted(path for path in before if after.get(path, b"") not in (b"", before[path]))
        ),
        removed=tuple(path for path in removed if path not in sources),
        renamed=tuple(renamed),
    )


def _renamed(removed: dict[str, bytes], added: dict[str, bytes]) -> list[tuple[str, str]]:
    """Pair what is gone with what is new of the same text, first where the name stayed the same."""
    pairs: dict[str, str] = {}
    for same_name in (True, False):
        waiting: dict[tuple[bytes, str], list[str]] = {}
        for path, digest in added.items():
            if path not in pairs.values():
                waiting.setdefault((digest, _name(path) if same_name else ""), []).append(path)
        for path, digest in removed.items():
            targets = waiting.get((digest, _name(path) if same_name else ""))
            if path not in pairs and targets:
                pairs[path] = targets.pop(0)
    return sorted(pairs.items())


def _name(path: str) -> str:
    return path.rpartition("/")[2]
