"""From events to places to look at.

An event, whoever sends it, says that something happened near a path, never what is there now: they
come late, doubled, in any order, and some are lost. So they are kept as a set of paths, and whoever
takes the set looks at each again (`snapshot.look_again`).

Guarantees:
- A burst, such as a switch of branches, is one set, of at most `MOST_PLACES` places: first paths,
  then their folders, then the whole workspace folder. The memory for it is bounded.
- A changed file of ignore rules, or one that says what its folder is, means all of the folder.
- While git holds its locks, what is on disk is half one branch and half another, so `delay` says
  to wait; but for no lock longer than `LONGEST_LOCK`, since a killed git leaves its own for ever.

Nothing here waits or reads a clock: `now` is any clock that only goes forward, in seconds.
Events may come from any thread; `delay` and `take` are for one.
"""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from qcn_indexer.git_folders import repository_of
from qcn_indexer.ignore import IN_FOLDERS
from qcn_indexer.names import MARKERS, unfit_folder
from qcn_indexer.secrets import secret_folder
from qcn_indexer.walk import TOP

MOST_PLACES = 200
# Paths kept before nothing but "everything" is: a few megabytes.
MOST_PATHS = 20_000
# A burst is over when nothing came for this long, and is cut when it has lasted long enough.
QUIET, LONGEST_BURST = 0.2, 2.0
# How long to wait before looking at a lock again, and how long a lock is believed.
LOCK_PAUSE, LONGEST_LOCK = 0.2, 60.0
_LOCKS = ("index.lock", "HEAD.lock")
EVERYTHING = frozenset({TOP})


class Changes:
    """What may have changed in one workspace folder since it was last asked for."""

    def __init__(self, root: Path, wake: Callable[[], None] = lambda: None) -> None:
        """`wake` is called, from the thread of the event, when there is something to look at."""
        self._real_root = root.resolve()
        self._roots = {root, self._real_root}
        self._wake = wake
        self._mutex = threading.Lock()
        self._paths: set[PurePosixPath] = set()
        self._first = self._last = 0.0
        self._lock_since: tuple[tuple[int, int], float] | None = None
        self.overflowed = False
        """Whether events were lost since this was last set to False."""

    def add(self, path: Path, now: float) -> None:
        """Note an event at an absolute path; one outside the workspace folder is no concern."""
        root = next((root for root in self._roots if path.is_relative_to(root)), None)
        if root is not None and (place := _place(PurePosixPath(path.relative_to(root)))):
            self._note(place, now)

    def add_everything(self, now: float, *, overflowed: bool = False) -> None:
        """Note that nobody knows what happened; `overflowed`: for events were lost."""
        self.overflowed |= overflowed
        self._note(TOP, now)

    def delay(self, now: float) -> float | None:
        """Return after how many seconds to ask again, 0 if it is time to take, None if never."""
        with self._mutex:
            if not self._paths:
                return None
            first, last = self._first, self._last
        pause = min(last + QUIET, first + LONGEST_BURST) - now
        return max(pause, LOCK_PAUSE if self._git_is_at_work(now) else 0.0)

    def take(self) -> frozenset[PurePosixPath]:
        """Return the places to look at, whatever `delay` says, and forget them."""
        with self._mutex:
            paths, self._paths = self._paths, set()
        return _few(paths)

    def _note(self, place: PurePosixPath, now: float) -> None:
        with self._mutex:
            if not self._paths:
                self._first = now
            self._last = now
            if TOP not in self._paths:
                self._paths.add(place)
            if place == TOP or len(self._paths) > MOST_PATHS:
                self._paths = {TOP}
        self._wake()

    def _git_is_at_work(self, now: float) -> bool:
        lock = self._lock()
        if lock is None:
            self._lock_since = None
            return False
        if self._lock_since is None or self._lock_since[0] != lock:
            self._lock_since = (lock, now)
        return now - self._lock_since[1] < LONGEST_LOCK

    def _lock(self) -> tuple[int, int] | None:
        """Return what tells the lock that git holds now from any other, or None."""
        git = repository_of(self._real_root)
        if git is None:
            return None
        for name in _LOCKS:
            try:
                found = (git / name).lstat()
            except OSError:
                continue
            return found.st_ino, found.st_mtime_ns
        return None


def _place(path: PurePosixPath) -> PurePosixPath | None:
    """Return where to look for an event at `path`, or None if nothing can come of it."""
    if ".git" in path.parts:
        above = PurePosixPath(*path.parts[: path.parts.index(".git")])
        inside = path.relative_to(above / ".git")
        return above if inside in (TOP, PurePosixPath("info/exclude")) else None
    if any(unfit_folder(name) or secret_folder(name) for name in path.parts[:-1]):
        return None  # an installation of packages is 50,000 events
    return path.parent if path.name in IN_FOLDERS or path.name in MARKERS else path


def _few(paths: set[PurePosixPath]) -> frozenset[PurePosixPath]:
    places = _outermost(paths)
    if len(places) > MOST_PLACES:
        places = _outermost({place.parent for place in places})
    return places if len(places) <= MOST_PLACES else EVERYTHING


def _outermost(places: Iterable[PurePosixPath]) -> frozenset[PurePosixPath]:
    """Return the places without those that lie below another."""
    kept = frozenset(places)
    return frozenset(place for place in kept if kept.isdisjoint(place.parents))
