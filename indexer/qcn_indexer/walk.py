"""Going through a workspace folder: each file that may be read, and why each other one is not.

Guarantees:
- Nothing is opened but folders and files of ignore rules; what is a device, a FIFO or a socket is
  known by `lstat`.
- No way leads out of the workspace folder: symbolic links are never followed. A link to what lies
  inside would show it twice, so each file is found where it stands and nowhere else.
- Whatever cannot be read is named with its reason, and the walk goes on. A folder that is left out
  is named once, not file by file. What vanishes meanwhile is not named.
- The order depends on the names alone: in each folder first its files, then its folders.
- The memory needed is that of one folder's listing and of the folders beside the way down to it.

Files are judged by name and size here, and by content in `read.py`.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qcn_indexer.ignore import Ignore, UserRules, ignore_at
from qcn_indexer.names import MARKERS, unfit_file, unfit_folder
from qcn_indexer.secrets import secret_by_name, secret_folder

# About 80,000 tokens, a third of the longest context: one such file would push out all others. Of
# 31,000 sources of installed Python packages and C headers, 2 in 1,000 are longer.
MAX_BYTES = 256 * 1024
TOP = PurePosixPath()
EMPTY_FILE = "it is empty"


@dataclass(frozen=True, slots=True)
class Found:
    """A file that may be read, by its path below the workspace folder."""

    path: PurePosixPath
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, or a folder with all that it holds, that is left out; `TOP` for everything."""

    path: PurePosixPath
    reason: str
    unread: bool = False  # no rule leaves it out: it, or its rules, could not be read


def walk(
    root: Path, places: Iterable[PurePosixPath] = (TOP,), users: UserRules | None = None
) -> Iterator[Found | Skipped]:
    """Yield what is at or below each of the places in the workspace folder `root`.

    Where nothing is, nothing is yielded. Where a folder above a place is left out, or is no folder,
    that is what is yielded. `users` are the user's own rules, where they are known already.
    """
    root = root.resolve()
    way = _Way(root, ignore_at(root, users))
    for place in places:
        yield from _at(root, place, way)


class _Way:
    """The rules of the folders on the way to some places, each read once."""

    def __init__(self, root: Path, rules: Ignore) -> None:
        self._root = root
        self._rules = {TOP: rules}
        self._unfit: dict[PurePosixPath, Skipped | None] = {}

    def rules(self, folder: PurePosixPath) -> Ignore:
        if folder not in self._rules:
            self._rules[folder] = self.rules(folder.parent).inside(folder.name)
        return self._rules[folder]

    def unfit(self, folder: PurePosixPath) -> Skipped | None:
        if folder not in self._unfit:
            self._unfit[folder] = _unfit_as_a_whole(self._root, folder, self.rules(folder))
        return self._unfit[folder]


def _at(root: Path, place: PurePosixPath, way: _Way) -> Iterator[Found | Skipped]:
    path = TOP
    for name in place.parts:
        if unfit := way.unfit(path):
            yield unfit
            return
        try:
            status = os.lstat(root / path / name)
        except OSError:
            return
        if found := _judge(root, path, name, status, way.rules(path)):
            yield found
            return
        path = path / name
    yield from _below(root, path, way.rules(path))


def _below(root: Path, path: PurePosixPath, rules: Ignore) -> Iterator[Found | Skipped]:
    pending = [(path, rules)]
    while pending:
        path, rules = pending.pop()
        if rules.folder != root / path:  # those of the folder above: its own are read only now
            rules = rules.inside(path.name)
        folders: list[tuple[PurePosixPath, Ignore]] = []
        for item in _directly_in(root, path, rules):
            if isinstance(item, PurePosixPath):
                folders.append((item, rules))
            else:
                yield item
        pending.extend(reversed(folders))


def _directly_in(
    root: Path, path: PurePosixPath, rules: Ignore
) -> Iterator[Found | Skipped | PurePosixPath]:
    """Yield what one folder holds; a folder to go into by its path alone."""
    if unfit := _unfit_as_a_whole(root, path, rules):
        yield unfit
        return
    try:
        with os.scandir(root / path) as listing:
            entries = sorted(listing, key=lambda entry: entry.name, reverse=True)
    except FileNotFoundError:
        return
    except OSError as error:
        yield Skipped(path, f"it cannot be read: {error.strerror}", unread=True)
        return
    while entries:
        entry = entries.pop()  # dropped one by one, as each keeps what it was asked
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            reason = f"it cannot be read: {error.strerror}"
            yield Skipped(path / entry.name, reason, unread=True)
            continue
        yield _judge(root, path, entry.name, status, rules) or path / entry.name


def _unfit_as_a_whole(root: Path, folder: PurePosixPath, rules: Ignore) -> Skipped | None:
    if rules.whole:
        return Skipped(folder, rules.whole, rules.unread)
    marker = next((name for name in MARKERS if os.path.lexists(root / folder / name)), None)
    return Skipped(folder, f"{MARKERS[marker]} (it holds {marker})") if marker else None


def _judge(
    root: Path, folder: PurePosixPath, name: str, status: os.stat_result, rules: Ignore
) -> Found | Skipped | None:
    """Return what to say of `name` in `folder`, or None if it is a folder to go into."""
    path = folder / name
    is_folder = stat.S_ISDIR(status.st_mode)
    if reason := _unfit_name(path, is_folder) or rules.reason(name, is_folder=is_folder):
        return Skipped(path, reason)
    if is_folder:
        return None
    if stat.S_ISLNK(status.st_mode):
        return Skipped(path, _about_link(root, root / path))
    if not stat.S_ISREG(status.st_mode):
        return Skipped(path, "it is a device, a FIFO or a socket")
    if status.st_size == 0:
        return Skipped(path, EMPTY_FILE)
    if status.st_size > MAX_BYTES:
        return Skipped(path, f"it is longer than {MAX_BYTES // 1024} KiB")
    return Found(path, status.st_size, status.st_mtime_ns)


def _unfit_name(path: PurePosixPath, is_folder: bool) -> str | None:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if is_folder:
        return unfit_folder(path.name) or secret_folder(path.name)
    if path.name == ".git":
        return unfit_folder(path.name)
    return secret_by_name(path) or unfit_file(path.name)


def _about_link(root: Path, link: Path) -> str:
    try:
        target = Path(os.path.realpath(link, strict=True))
    except OSError:
        return "it is a symbolic link to nothing, or in a circle"
    if link.is_relative_to(target):
        return "it is a symbolic link to a folder around it"
    if not target.is_relative_to(root):
        return "it is a symbolic link that leaves the workspace folder"
    return f"it is a symbolic link, a second name of {target.relative_to(root).as_posix()}"
