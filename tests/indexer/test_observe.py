"""Being told of changes by the system itself."""

import errno
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pytest
from deadlines import DEADLINE_SECONDS
from indexer.tree_support import write
from qcn_indexer.changes import EVERYTHING, Changes
from qcn_indexer.observe import Watcher
from watchdog.observers import Observer


class Told:
    """Changes that a test can wait for."""

    def __init__(self, root: Path) -> None:
        self.woken = threading.Event()
        self.changes = Changes(root, wake=self.woken.set)
        self.messages: list[str] = []

    def until(self, *expected: str) -> None:
        wanted = {PurePosixPath(path) for path in expected}
        while wanted:
            assert self.woken.wait(DEADLINE_SECONDS), f"nothing was told of {wanted}"
            self.woken.clear()
            wanted -= self.changes.take()


@contextmanager
def watched(root: Path, **options: float) -> Iterator[Told]:
    told = Told(root)
    watcher = Watcher(root, told.changes, told.messages.append, **options)
    try:
        yield told
    finally:
        watcher.stop()


def test_what_happens_to_files_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "1", "src/b.py": "1", "src/c.py": "1"})
    with watched(tmp_path) as told:
        write(tmp_path, {"a.py": "2"})
        told.until("a.py")
        (tmp_path / "src" / "b.py").unlink()
        told.until("src/b.py")
        (tmp_path / "src" / "c.py").rename(tmp_path / "d.py")
        told.until("src/c.py", "d.py")
        write(tmp_path, {"new/e.py": "1"})
        told.until("new")
        assert told.messages == []


def test_a_link_to_a_folder_is_watched_where_it_leads(tmp_path: Path) -> None:
    root = tmp_path / "link"
    for name in ("first", "second"):
        write(tmp_path / name, {"src/a.py": "1"})
        root.unlink(missing_ok=True)
        root.symlink_to(tmp_path / name)
        with watched(root) as told:
            write(root, {"src/a.py": "2"})
            told.until("src/a.py")
            write(tmp_path / name, {"new/b.py": "1"})
            told.until("new")


@pytest.mark.parametrize("how", ["removed", "moved away", "a link elsewhere"])
def test_that_another_folder_took_the_place_of_the_watched_one_is_noticed(
    tmp_path: Path, how: str
) -> None:
    root = tmp_path / "root"
    write(tmp_path / "old", {"a.py": "1"})
    if how == "a link elsewhere":
        root.symlink_to(tmp_path / "old")
    else:
        (tmp_path / "old").rename(root)
    told = Told(root)
    watcher = Watcher(root, told.changes, told.messages.append)
    try:
        write(root, {"a.py": "2"})
        assert not watcher.lost
        if how == "a link elsewhere":
            root.unlink()
        elif how == "removed":
            shutil.rmtree(root)
            told.until(".")
        else:
            root.rename(tmp_path / "elsewhere")
        assert not watcher.lost  # nothing is there to watch
        write(root, {"a.py": "3"})
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not watcher.lost:  # a thread may take a moment to end
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        watcher.stop()


def test_reading_is_no_change(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "1", "b.py": "1"})
    with watched(tmp_path) as told:
        (tmp_path / "a.py").read_text()
        write(tmp_path, {"b.py": "2"})
        assert told.woken.wait(DEADLINE_SECONDS)
        assert PurePosixPath("a.py") not in told.changes.take()


def test_whatever_watchdog_warns_of_means_that_events_may_be_lost(tmp_path: Path) -> None:
    with watched(tmp_path) as told:
        assert not told.changes.overflowed
        logging.getLogger("watchdog.observers.inotify_c").warning("Inotify queue overflowed")
        assert told.changes.take() == EVERYTHING
        assert told.changes.overflowed


def test_where_the_system_does_not_watch_it_is_said_once_and_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(Observer, "schedule", refuse)
    with watched(tmp_path, scan_seconds=0.01) as told:
        for _ in range(3):
            told.until(".")
        assert not told.changes.overflowed
        assert len(told.messages) == 1
        assert "inotify watch limit reached" in told.messages[0]


LIMITED = """
import sys
from pathlib import Path
from qcn_indexer.changes import Changes
from qcn_indexer.observe import Watcher
watcher = Watcher(Path(sys.argv[1]), Changes(Path(sys.argv[1])), print)
watcher.stop()
"""


@pytest.mark.parametrize(("limit", "messages"), [(20, 1), (100, 0)])
def test_a_limit_reached_below_the_folder_is_noticed(
    tmp_path: Path, limit: int, messages: int
) -> None:
    """On the real limit, set low in a user namespace; watchdog itself passes over it in silence."""
    for folder in range(40):
        (tmp_path / str(folder)).mkdir()
    own_limit = f"echo {limit} > /proc/sys/user/max_inotify_watches && exec "
    namespace = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    if subprocess.run([*namespace, own_limit + "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    program = [*namespace, own_limit + '"$@"', "sh", sys.executable, "-c", LIMITED, str(tmp_path)]
    answer = subprocess.run(program, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.count("inotify watch limit reached") == messages
