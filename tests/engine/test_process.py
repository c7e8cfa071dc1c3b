"""The engine's process: its socket, its states, and how it leaves."""

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from engine_support import DEADLINE_SECONDS, LONG_ANSWER, EngineProcess, engine_on, start_engine
from qcn_inference.scheduler import Priority, Scheduler
from qcn_inference.service import server
from qcn_inference.service.activity import Activity
from qcn_inference.service.listen import AlreadyServed, is_loopback, unix_socket

TOKEN = "0123456789abcdef"
SECRET = "the_users_own_text"


@pytest.fixture
def empty_folder(tmp_path: Path) -> Path:
    """A model that cannot be loaded: enough where only the process is of interest, and quick."""
    return tmp_path / "no model"


def exit_of(engine: EngineProcess) -> int:
    return engine.process.wait(DEADLINE_SECONDS)


def refused(*arguments: str) -> tuple[int, str]:
    """Run `serve` where it must give up; return its exit code and what it said."""
    command = [sys.executable, "-m", "qcn_inference", "serve", "--model", "qcn-nano", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    return done.returncode, done.stderr


def bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener


# A `sitecustomize` under which torch begins to be imported once somebody writes to a FIFO.
WAITS_WITH_TORCH = """
import importlib.util
import sys

class Gate:
    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (open({fifo!r}).read(), execute(module))
        return spec

sys.meta_path.insert(0, Gate())
"""


def test_it_answers_before_the_model_is_there_and_tells_its_progress(
    socket_path: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "sitecustomize.py").write_text(WAITS_WITH_TORCH.format(fifo=str(fifo)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with engine_on(socket_path, model_folder) as engine:
        health = engine.until("starting")
        assert health["progress"] is None
        assert health["context_length"] is None
        assert engine.client.get("/health").status_code == 503
        answer = engine.client.post("/infill", json={"prompt": "a"})
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "unavailable"
        fifo.write_text("go on")
        ready = engine.until("ready")
        assert ready["progress"]["done"] == ready["progress"]["total"]


def test_what_answers_first_does_not_import_torch() -> None:
    code = "import sys, qcn_inference.service.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_socket_is_its_users_alone(socket_path: Path, empty_folder: Path) -> None:
    with engine_on(socket_path, empty_folder) as engine:
        engine.until("errored")
        status = socket_path.stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
    assert list(socket_path.parent.glob(f"{socket_path.name}*")) == []  # nor its lock file


def test_a_lock_file_that_is_removed_while_it_is_being_locked_lets_no_second_engine_in(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one in front leaves when this one has opened its file, and the next has begun."""
    lock, flock = socket_path.with_name(f"{socket_path.name}.lock"), fcntl.flock

    def overtaken(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        flock(file, how)
        lock.unlink()
        stack.enter_context(unix_socket(socket_path))

    monkeypatch.setattr(fcntl, "flock", overtaken)
    with ExitStack() as stack:
        with pytest.raises(AlreadyServed), unix_socket(socket_path):
            pass
        assert socket_path.is_socket()
        assert lock.exists()
    assert not lock.exists()


def test_a_model_that_cannot_be_loaded_is_told(socket_path: Path, empty_folder: Path) -> None:
    with engine_on(socket_path, empty_folder) as engine:
        health = engine.until("errored")
        assert str(empty_folder) in health["error"]
        assert engine.client.get("/health").status_code == 503
        answer = engine.client.post("/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 503
        assert health["error"] in answer.json()["error"]["message"]
        assert engine.client.get("/metrics").status_code == 200


def test_damaged_weights_are_told(socket_path: Path, model_folder: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(model_folder, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with engine_on(socket_path, damaged) as engine:
        assert "model.safetensors" in engine.until("errored")["error"]


def test_a_second_engine_on_the_socket_gives_up(socket_path: Path, empty_folder: Path) -> None:
    with engine_on(socket_path, empty_folder) as engine:
        engine.until("errored")
        assert refused("--socket", str(socket_path)) == (
            3,
            f"qcn_inference: another engine is serving {socket_path}\n",
        )
        assert engine.client.get("/health").json()["pid"] == engine.process.pid


def test_a_socket_of_another_program_is_left_alone(socket_path: Path) -> None:
    with bound(socket_path) as other:
        other.listen()
        code, message = refused("--socket", str(socket_path))
        assert code == 3
        assert "another program is serving" in message
        assert socket_path.is_socket()


def test_a_socket_left_behind_is_replaced(socket_path: Path, empty_folder: Path) -> None:
    bound(socket_path).close()
    with engine_on(socket_path, empty_folder) as engine:
        engine.until("errored")
        engine.process.kill()
        exit_of(engine)
    assert socket_path.is_socket()
    with engine_on(socket_path, empty_folder) as engine:
        engine.until("errored")


def test_a_file_that_is_no_socket_is_left_alone(socket_path: Path) -> None:
    socket_path.write_text("precious")
    code, message = refused("--socket", str(socket_path))
    assert code == 1
    assert f"{socket_path} exists and is not a socket" in message
    assert socket_path.read_text() == "precious"


def test_a_socket_that_is_no_longer_its_own_is_left_alone(
    socket_path: Path, empty_folder: Path
) -> None:
    with engine_on(socket_path, empty_folder) as engine:
        engine.until("errored")
        socket_path.unlink()
        with bound(socket_path):
            engine.process.terminate()
            assert exit_of(engine) == 0
            assert socket_path.is_socket()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--socket", "/" + "x" * 100], "longer than 100 bytes"),
        (["--socket", "/does/not/exist/s"], "cannot open the lock file"),
        (["--host", "0.0.0.0", "--port", "0", "--token-file", "{token}"], "is not loopback"),
        (["--host", "example.org", "--port", "0", "--token-file", "{token}"], "is not loopback"),
        (["--host", "127.0.0.1", "--port", "0", "--token-file", "{open}"], "chmod 600"),
        (["--host", "127.0.0.1", "--port", "0", "--token-file", "{short}"], "at least 16"),
        (["--host", "127.0.0.1", "--port", "0", "--token-file", "{none}"], "cannot read"),
    ],
)
def test_an_address_or_token_that_will_not_do(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    files = {"token": (TOKEN, 0o600), "open": (TOKEN, 0o644), "short": ("abc", 0o600)}
    for name, (content, mode) in files.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(mode)
    names = {name: str(tmp_path / name) for name in [*files, "none"]}
    code, message = refused(*[argument.format(**names) for argument in arguments])
    assert code == 1
    assert words in message


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--host", "127.0.0.1", "--port", "0"],
        ["--socket", "s", "--port", "1"],
        ["--socket", "s", "--idle-minutes", "0"],
        ["--socket", "s", "--idle-minutes", "nan"],
        ["--socket", "s", "--threads", "0"],
        ["--socket", "s", "--cache-mib", "-1"],
        ["--socket", "s", "--disk-cache-mib", "some"],
    ],
)
def test_a_wrong_command_line(arguments: list[str]) -> None:
    code, message = refused(*arguments)
    assert code == 2
    assert "usage: python -m qcn_inference serve" in message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(
    socket_path: Path, empty_folder: Path, number: signal.Signals
) -> None:
    with engine_on(socket_path, empty_folder) as engine:
        engine.until("errored")
        engine.process.send_signal(number)
        assert exit_of(engine) == 0
        assert not socket_path.exists()


def test_a_signal_answers_what_is_under_way(socket_path: Path, long_model_folder: Path) -> None:
    with engine_on(socket_path, long_model_folder) as engine:
        engine.until("ready")
        body = {"prompt": SECRET, "max_tokens": LONG_ANSWER, "temperature": 0, "stream": True}
        with engine.client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            engine.process.terminate()
            *_, error, done = [line for line in lines if line]
        assert '"unavailable"' in error
        assert done == "data: [DONE]"
        assert exit_of(engine) == 0


def test_unused_it_leaves_and_being_watched_is_no_use(
    socket_path: Path, empty_folder: Path
) -> None:
    with engine_on(socket_path, empty_folder, "--idle-minutes", "0.01") as engine:
        while engine.process.poll() is None:
            with suppress(httpx.TransportError):  # not bound yet, or leaving
                engine.client.get("/health")
        assert exit_of(engine) == 0
        assert not socket_path.exists()


async def test_what_is_read_without_anybody_waiting_is_read_to_its_end() -> None:
    """A layout that was put with `"wait": false`."""
    seconds, happened = 0.0, asyncio.Queue[str]()

    class Watched(Activity):
        def touch(self) -> None:
            super().touch()
            happened.put_nowait("goes on")

    scheduler = Scheduler()
    engine: Any = SimpleNamespace(
        settled=asyncio.Event(), activity=Watched(lambda: seconds), scheduler=scheduler
    )
    engine.settled.set()
    reading = scheduler.submit((part for part in [None]), priority=Priority.REFRESH)
    seconds = 10
    leaving: Any = SimpleNamespace(leave=lambda *, at_once: happened.put_nowait("leaves"))
    task = asyncio.create_task(server._leave_when_unused(engine, 0.001, leaving))
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await happened.get() == "goes on"
        reading.cancel()
        seconds = 20
        while await happened.get() != "leaves":
            pass
        await task


def test_only_requests_being_served_are_use() -> None:
    seconds = 0.0
    activity = Activity(lambda: seconds)
    seconds = 10
    assert activity.idle_seconds == 10
    with activity.use(), activity.use():
        seconds = 99
        assert (activity.active, activity.idle_seconds) == (2, 0)
        assert not activity.unused.is_set()
    assert activity.unused.is_set()
    assert activity.idle_seconds == 0
    seconds = 100
    assert activity.idle_seconds == 1


@pytest.mark.parametrize("body", [{"when": "now"}, {"when": "idle"}, {}])
def test_it_leaves_when_told(socket_path: Path, empty_folder: Path, body: dict[str, str]) -> None:
    with engine_on(socket_path, empty_folder) as engine:
        engine.until("errored")
        assert engine.client.post("/shutdown", json=body).status_code == 202
        assert exit_of(engine) == 0
        assert not socket_path.exists()


def test_told_to_leave_when_idle_it_finishes_first_and_logs_no_prompt(
    socket_path: Path, model_folder: Path
) -> None:
    with engine_on(socket_path, model_folder) as engine:
        engine.until("ready")
        engine.client.post("/infill", content=f'{{"input_prefix": "{SECRET}')  # malformed
        engine.client.post("/infill", json={"n_predict": SECRET})
        body = {"prompt": SECRET, "max_tokens": 300, "temperature": 0, "stream": True}
        with engine.client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert engine.client.post("/shutdown").status_code == 202
            *_, last, done = [line for line in lines if line]
        assert '"finish_reason": null' not in last
        assert done == "data: [DONE]"
        assert exit_of(engine) == 0
        log = engine.log()
        assert "state: ready" in log
        assert SECRET not in log


@pytest.fixture
def tcp_engine(tmp_path: Path, empty_folder: Path) -> Iterator[str]:
    """An engine on a TCP port; its address."""
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    token_file.chmod(0o600)
    arguments = ["--host", "127.0.0.1", "--port", "0", "--token-file", str(token_file)]
    with start_engine(empty_folder, *arguments) as process:
        assert process.stderr is not None
        listening = next(line for line in process.stderr if "listening on" in line)
        yield listening.rsplit(" ", 1)[1].strip()


def test_over_tcp_a_token_and_a_loopback_name_are_asked_for(tcp_engine: str) -> None:
    address, port = f"http://{tcp_engine}/health", tcp_engine.rsplit(":", 1)[1]
    bearer = {"Authorization": f"Bearer {TOKEN}"}

    def status(headers: dict[str, str]) -> int:
        answer = httpx.get(address, headers=headers, timeout=DEADLINE_SECONDS, trust_env=False)
        return answer.status_code

    assert status(bearer) == 503  # the engine's own answer
    assert status({"Authorization": f"bearer {TOKEN}"}) == 503
    assert status(bearer | {"Host": f"localhost:{port}"}) == 503
    assert status(bearer | {"Host": f"[::1]:{port}"}) == 503
    for wrong in ({}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN[:-1]}"}):
        assert status(wrong) == 401
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "",
        "192.168.0.1",
    ):
        assert status(bearer | {"Host": host}) == 403
    assert status({"Host": "evil.example"}) == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.evil.example", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_what_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
