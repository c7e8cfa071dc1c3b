"""Being told of changes by the system, for editors that do not watch files themselves.

watchdog watches; each of its events is a place to look, and whatever it warns of (a queue that ran
over, a folder that could not be added) means that events may be lost, so everything is looked at.
Where the system refuses to watch, which on Linux is usual for large folders, everything is looked
at now and then instead, and the user is told once.

The system watches a folder, not its path: of one that takes a removed or renamed one's place it
tells nothing, so whoever uses what was heard asks now and then whether the watcher is `lost`.

watchdog is imported here alone, so import this module only when something is to be watched.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from qcn_indexer.changes import Changes

# A look at 200,000 files takes seconds of one core, so this costs a few per cent of it at worst.
SCAN_SECONDS = 120.0
# Not that a file was opened or closed unwritten: our own reading would never end.
_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]


class Watcher:
    """Feeds `changes` with what happens below `root`, from its making until `stop`."""

    def __init__(
        self,
        root: Path,
        changes: Changes,
        say: Callable[[str], None],
        *,
        scan_seconds: float = SCAN_SECONDS,
    ) -> None:
        """`say` is given the one message for the user when the system does not watch."""
        self._changes = changes
        self._root, self._watched = root, _identity(root)
        self._stopped = threading.Event()
        self._scanner: threading.Thread | None = None
        self._warnings = _Warnings(changes)
        logging.getLogger("watchdog").addHandler(self._warnings)
        self._observer = Observer()
        try:
            self._watch(root)
        except OSError as error:
            self._end_observer()
            say(
                f"The system does not watch {root.name} for changes ({error.strerror}); "
                f"it is looked through every {scan_seconds:.0f} s instead."
            )
            self._scanner = threading.Thread(
                target=self._scan, args=(scan_seconds,), name="qcn-scan", daemon=True
            )
            self._scanner.start()

    def _watch(self, root: Path) -> None:
        """Watch `root`, or raise `OSError` if not all of it can be watched.

        watchdog passes over a folder for which the system's limit leaves no watch. So one more
        watch is asked for at last: it is refused if the limit was reached.
        """
        # watchdog does not follow a link, also where it is what is to be watched.
        events = _Events(self._changes, root, root.resolve())
        self._observer.start()
        self._observer.schedule(events, str(root.resolve()), recursive=True, event_filter=_EVENTS)
        with TemporaryDirectory() as probe:
            self._observer.unschedule(self._observer.schedule(events, probe, event_filter=_EVENTS))

    @property
    def lost(self) -> bool:
        """Whether another folder stands where the watched one was: nothing is heard of it."""
        now = _identity(self._root)
        if self._scanner or now is None:
            return False
        # A new folder may have the number of one that was removed; that ends watchdog's thread.
        alive = all(emitter.is_alive() for emitter in self._observer.emitters)
        return now != self._watched or not alive

    def stop(self) -> None:
        """End all threads, and return when they have ended."""
        self._stopped.set()
        logging.getLogger("watchdog").removeHandler(self._warnings)
        self._end_observer()
        if self._scanner:
            self._scanner.join()

    def _end_observer(self) -> None:
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()

    def _scan(self, seconds: float) -> None:
        while not self._stopped.wait(seconds):
            self._changes.add_everything(time.monotonic())


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _Events(FileSystemEventHandler):
    def __init__(self, changes: Changes, root: Path, real_root: Path) -> None:
        self._changes = changes
        self._root, self._real_root = root, real_root

    def on_any_event(self, event: FileSystemEvent) -> None:
        for name in (event.src_path, event.dest_path):
            if name:
                path = Path(os.fsdecode(name))
                if path.is_relative_to(self._real_root):
                    path = self._root / path.relative_to(self._real_root)
                self._changes.add(path, time.monotonic())


class _Warnings(logging.Handler):
    def __init__(self, changes: Changes) -> None:
        super().__init__(logging.WARNING)
        self._changes = changes

    def emit(self, record: logging.LogRecord) -> None:
        self._changes.add_everything(time.monotonic(), overflowed=True)
