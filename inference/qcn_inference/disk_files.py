"""Where the states of contexts lie on disk, and what may stay there.

    <user's cache>/qcn/contexts / <fingerprint of the model> / <digest of the repository's name> /
        <key>-<key of its parent>.state

A file's name says which file it continues, so a listing is all that planning needs. Files are only
ever written beside their place and renamed into it, and only ever removed whole: whoever lists may
find one gone a moment later, never changed. A file whose parent is gone is of no use and is removed
where it is noticed.

No torch here: what is to be forgotten is forgotten while the model is still loading, too.
"""

import hashlib
import heapq
import os
import re
import shutil
import stat
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

NO_PARENT = "0" * 32
RETENTION_SECONDS = 30 * 24 * 3600.0
"""How long a state that nothing uses stays."""
GONE = ".gone-"  # begins the name of a folder that is being removed
LOCK = ".lock"  # in a repository's folder; who writes there holds it
HALF_WRITTEN = ".tmp"  # ends the name of a file that is being written
_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})\.state")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the cache: a stretch of a text behind that of its parent."""

    path: Path
    key: str
    parent: str  # a key, or `NO_PARENT`
    nbytes: int
    used: float  # when it was written or last used, seconds since the epoch


def default_folder() -> Path:
    """The folder of all contexts in the user's cache directory."""
    return platformdirs.user_cache_path("qcn", appauthor=False) / "contexts"


def default_budget(folder: Path) -> int:
    """Bytes that the cache may take: a tenth of what is free or taken by it, 10 GiB at most.

    Raises OSError.
    """
    taken = sum(entry.nbytes for entry in all_entries(folder))
    return min(10 << 30, (shutil.disk_usage(folder).free + taken) // 10)


def name_of(repo: str) -> str:
    """The name of a repository's folder, which does not tell the repository's."""
    return hashlib.sha256(b"repository\0" + repo.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def file_name(key: str, parent: str) -> str:
    """The name of an entry."""
    return f"{key}-{parent}.state"


def make_private(folder: Path) -> None:
    """Make a folder and those above it that are missing, for this user alone.

    Raises OSError, also where the folder is another user's.
    """
    if not folder.is_absolute():
        raise OSError(f"no home folder to keep a cache in ({folder})")
    for level in reversed([folder, *folder.parents]):
        with suppress(FileExistsError):
            if not level.exists():
                level.mkdir(mode=0o700)
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


def entries_of(folder: Path) -> list[Entry]:
    """The entries in a repository's folder; none where it is missing. Raises other OSErrors."""
    found = []
    with suppress(FileNotFoundError), os.scandir(folder) as listing:
        for file in listing:
            if name := _NAME.fullmatch(file.name):
                with suppress(FileNotFoundError):
                    about = file.stat(follow_symlinks=False)
                    size, used = about.st_size, about.st_mtime
                    found.append(Entry(Path(file.path), name[1], name[2], size, used))
    return found


def chain_to(entries: Sequence[Entry], keys: Sequence[str]) -> list[tuple[int, int, Entry]]:
    """The entries that together hold the longest beginning of a text, in order.

    `keys` are those behind each block of the text. Each entry comes with the number of its first
    block and the number behind its last.
    """
    number = {NO_PARENT: 0} | {key: at for at, key in enumerate(keys, start=1)}
    by_end: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.key in number and number.get(entry.parent, len(keys)) < number[entry.key]:
            by_end[number[entry.key]].append(entry)
    reached: dict[int, Entry] = {}
    for end in sorted(by_end):
        for entry in by_end[end]:
            if entry.parent == NO_PARENT or number[entry.parent] in reached:
                reached[end] = entry
    chain, end = [], max(reached, default=0)
    while end:
        entry = reached[end]
        chain.append((number[entry.parent], end, entry))
        end = number[entry.parent]
    return chain[::-1]


def purge(root: Path, repo: str) -> int:
    """Remove all that was kept of repositories of this name, by any model; the number of files.

    Raises OSError where something could not be removed.
    """
    removed = 0
    for folder in root.glob(f"*/{name_of(repo)}"):
        # Renamed first: what another engine is writing there at this moment finds its folder gone.
        gone = folder.with_name(f"{GONE}{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):
            folder.rename(gone)
            removed += len(entries_of(gone))
            _remove_tree(gone)
    return removed


def _remove_tree(folder: Path) -> None:
    """Remove a folder that another engine may be removing too."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        shutil.rmtree(folder)  # says why


def sweep(root: Path, max_bytes: int) -> int:
    """Remove what is of no use, unused for too long or too much; the bytes that are left.

    What goes first of too much is what was used least recently among the entries that no other
    continues. Raises OSError.
    """
    for gone in root.glob(f"*/{GONE}*"):
        _remove_tree(gone)
    _remove_half_written(root)
    entries = _of_use(list(all_entries(root)), time.time() - RETENTION_SECONDS)
    left = sum(entry.nbytes for entry in entries)
    for entry in _leaves_first(entries) if left > max_bytes else ():
        entry.path.unlink(missing_ok=True)
        left -= entry.nbytes
        if left <= max_bytes:
            break
    for folder in (*root.glob("*/*"), *root.glob("*")):
        # Not empty is an error; so is that another engine has just begun to write there.
        with suppress(OSError):
            if [file.name for file in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
            folder.rmdir()
    return left


def _remove_half_written(root: Path) -> None:
    """Remove what writers that were killed have left; one that is alive holds its folder's lock."""
    for folder in {file.parent for file in root.glob(f"*/*/*{HALF_WRITTEN}")}:
        with (
            suppress(Timeout, FileNotFoundError),
            FileLock(folder / LOCK, timeout=0, mode=0o600),
        ):
            for file in folder.glob(f"*{HALF_WRITTEN}"):
                file.unlink(missing_ok=True)


def all_entries(root: Path) -> Iterator[Entry]:
    """The entries of all repositories and models. Raises OSError."""
    for folder in root.glob("*/*"):
        if folder.is_dir():
            yield from entries_of(folder)


def _of_use(entries: list[Entry], oldest: float) -> list[Entry]:
    """Remove what was not used since `oldest`, and what continues nothing that is there."""
    while True:
        there = {(entry.path.parent, entry.key) for entry in entries}
        kept = [
            entry
            for entry in entries
            if entry.used >= oldest
            and (entry.parent == NO_PARENT or (entry.path.parent, entry.parent) in there)
        ]
        if len(kept) == len(entries):
            return kept
        for entry in set(entries) - set(kept):
            entry.path.unlink(missing_ok=True)
        entries = kept


def _leaves_first(entries: list[Entry]) -> Iterator[Entry]:
    """All entries, the least recently used first, but each behind those that continue it."""
    continued = Counter((entry.path.parent, entry.parent) for entry in entries)
    by_key: dict[tuple[Path, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        by_key[entry.path.parent, entry.key].append(entry)
    leaves = [(entry.used, str(entry.path), entry) for entry in entries]
    leaves = [leaf for leaf in leaves if not continued[leaf[2].path.parent, leaf[2].key]]
    heapq.heapify(leaves)
    while leaves:
        *_, entry = heapq.heappop(leaves)
        yield entry
        above = entry.path.parent, entry.parent
        continued[above] -= 1
        if not continued[above]:
            for parent in by_key[above]:
                heapq.heappush(leaves, (parent.used, str(parent.path), parent))
