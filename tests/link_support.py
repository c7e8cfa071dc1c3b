"""What the tests of the link and of the commands share: a runtime directory of their own."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from deadlines import DEADLINE_SECONDS

STANDIN = Path(__file__).parent / "link" / "standin_engine.py"


async def until(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition()` holds; a test that waits for ever fails instead."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - other processes set no event of ours
            await asyncio.sleep(0.01)


def listens(path: Path) -> bool:
    """Whether somebody listens on a Unix socket; that it is there is not enough."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


async def kill(pid: int) -> None:
    """Kill a process; return when its sockets are closed, which is after its memory is gone."""
    process = psutil.Process(pid)
    process.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        await until(lambda: process.status() == psutil.STATUS_ZOMBIE)


def processes_of(runtime: Path) -> list[psutil.Process]:
    """Return the live processes, this one apart, whose environment names `runtime`."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("XDG_RUNTIME_DIR") == str(runtime)
            if ours and process.status() != psutil.STATUS_ZOMBIE and process != psutil.Process():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short runtime directory of this test's own; all that runs in it is ended afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="qcn-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    yield folder
    left = processes_of(folder)
    for process in left:
        process.terminate()
    _, stubborn = psutil.wait_procs(left, timeout=DEADLINE_SECONDS)
    for process in stubborn:
        process.kill()
    psutil.wait_procs(stubborn, timeout=DEADLINE_SECONDS)
    assert not processes_of(folder)
    assert not stubborn, "an engine did not leave on SIGTERM"
    shutil.rmtree(folder)


class StandInModel:
    """A model folder that tells the stand-in engine how to behave, and what happened to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def behave(self, **behaviour: object) -> None:
        (self.folder / "standin.json").write_text(json.dumps(behaviour))

    def events(self, name: str) -> list[dict[str, Any]]:
        file = self.folder / "events.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def pids(self) -> list[int]:
        return [event["pid"] for event in self.events("started")]


@pytest.fixture
def standin(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInModel:
    """A model folder, with the stand-in engine in the place of `qcn_inference`."""
    package = tmp_path / "standin" / "qcn_inference"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        f"import runpy\nrunpy.run_path({str(STANDIN)!r}, run_name='__main__')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
    return StandInModel(tmp_path / "model")


@pytest.fixture
def embedded(standin: StandInModel, runtime: Path) -> StandInModel:
    """The embedded model as the stand-in sees it: a folder of its name where the engine runs."""
    (runtime / "qcn").mkdir(mode=0o700)
    return StandInModel(runtime / "qcn" / "qcn-nano")
