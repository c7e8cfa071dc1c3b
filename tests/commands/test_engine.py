"""`qcn engine start|stop|status`, with the stand-in in the engine's place."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from command_support import qcn
from link_support import StandInModel, listens, processes_of, until
from standin_endpoint import endpoint

from qcn_lsp.cli import main
from qcn_lsp.engine.process import EngineOptions, engine_command
from qcn_lsp.engine.runtime import UnixAddress


def running() -> list[dict[str, object]]:
    return list(json.loads(qcn("engine", "status", "--json").stdout))


def test_an_engine_is_started_shown_and_stopped(standin: StandInModel, runtime: Path) -> None:
    started = qcn("engine", "start", "--model", standin.folder)
    assert (started.returncode, started.stderr) == (0, "")
    [pid] = standin.pids()
    assert f"ready: model, pid {pid}" in started.stdout
    [shown] = running()
    assert (shown["pid"], shown["state"], shown["answers"]) == (pid, "ready", True)
    assert str(pid) in qcn("engine", "status").stdout
    stopped = qcn("engine", "stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"Stopped the engine (pid {pid}).\n")
    assert not processes_of(runtime)
    assert "No engine is running" in qcn("engine", "status").stdout


def test_a_models_name_is_printed_as_it_is(runtime: Path, standin: StandInModel) -> None:
    model = StandInModel(standin.folder.parent / "w[/nope]" / "[id]")
    started = qcn("engine", "start", "--model", model.folder)
    assert (started.returncode, started.stderr) == (0, "")
    assert f"Starting the engine {model.folder}" in " ".join(started.stdout.split())
    assert "ready: [id], pid" in started.stdout
    assert "[id]" in qcn("engine", "status").stdout


def test_starting_twice_finds_the_one_that_runs(standin: StandInModel) -> None:
    for _ in range(2):
        assert qcn("engine", "start", "--model", standin.folder).returncode == 0
    assert len(standin.pids()) == 1


@pytest.mark.parametrize("command", ["engine start", "complete {file}:1:1", "fix {file}"])
def test_room_on_the_gpu_is_kept_for_the_other_model(
    command: str, standin: StandInModel, tmp_path: Path
) -> None:
    """As the language server has it, whose settings know of both."""
    (file := tmp_path / "load.py").write_text(
        "import os\n\n\ndef f(x):\n    os.system('ls ' + x)\n"
    )
    (other := tmp_path / "other").mkdir()
    words = command.format(file=file).split()
    done = qcn(*words, "--model", standin.folder, "--beside", other)
    [event] = standin.events("started")
    given: list[str] = event["arguments"]
    assert given[given.index("--beside") + 1] == str(other), done.stderr


def test_room_is_kept_for_no_folder_that_is_not_there(
    standin: StandInModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "nowhere"
    assert main(["engine", "start", "--model", str(standin.folder), "--beside", str(missing)]) == 1
    assert capsys.readouterr().err == f"qcn: --beside {missing}: no such folder\n"
    assert not standin.events("started")


def test_nothing_to_stop_is_no_error(runtime: Path) -> None:
    done = qcn("engine", "stop")
    assert (done.returncode, done.stdout) == (0, "No engine is running.\n")


def test_an_engine_that_cannot_serve_exits_with_1_and_the_reason(standin: StandInModel) -> None:
    standin.behave(state="errored", error="config.json is missing: choose another folder.")
    done = qcn("engine", "start", "--model", standin.folder)
    assert (done.returncode, done.stderr) == (
        1,
        "qcn: config.json is missing: choose another folder.\n",
    )


def test_why_one_cannot_serve_stands_below_the_table(standin: StandInModel) -> None:
    why = "config.json is missing: " + "choose another folder, " * 10 + "or none"
    standin.behave(state="errored", error=why)
    qcn("engine", "start", "--model", standin.folder)
    [pid] = standin.pids()
    head, row, reason = qcn("engine", "status").stdout.splitlines()
    assert (head.split()[1], row.split()[1]) == ("STATE", "errored")
    assert reason == f"pid {pid}: {why}"


def test_an_engine_on_a_port_gets_a_token_file(standin: StandInModel, runtime: Path) -> None:
    token = runtime / "token"
    # Bound and not listening, so that the engine may have the port and the system gives it nobody.
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        where = ("--port", str(port), "--token-file", token)
        started = qcn("engine", "start", "--model", standin.folder, *where)
    assert (started.returncode, started.stderr) == (0, "")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert running() == [], "windows do not look for it there"
    assert f"127.0.0.1:{port}" in qcn("engine", "status", *where).stdout
    assert "Stopped" in qcn("engine", "stop", *where).stdout


def test_at_one_address_another_model_is_refused_and_the_running_one_named(
    standin: StandInModel, runtime: Path, tmp_path: Path
) -> None:
    where = ("--socket", runtime / "s")
    same = tmp_path / "same"
    same.symlink_to(standin.folder)
    for folder in (standin.folder, same):
        assert qcn("engine", "start", "--model", folder, *where).returncode == 0
    refused = qcn("engine", "start", "--model", StandInModel(tmp_path / "other").folder, *where)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"runs another model, {standin.folder}." in refused.stderr
    assert f"qcn engine stop --socket {runtime}/s" in refused.stderr
    assert len(standin.pids()) == 1


@pytest.mark.parametrize(
    "where",
    [
        ("--port", "1"),
        ("--token-file", "t"),
        ("--host", "127.0.0.1"),
        ("--socket", "s", "--port", "1"),
        ("--socket", "s", "--host", "127.0.0.1"),
    ],
)
def test_an_address_must_be_whole(
    where: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engine", "start", *where]) == 1
    assert "--token-file" in capsys.readouterr().err


def test_a_token_file_that_cannot_be_made_is_explained(
    runtime: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = runtime / "none" / "token"
    assert main(["engine", "start", "--port", "8012", "--token-file", str(token)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"qcn: {token} cannot be written (No such file or directory): ")


@pytest.mark.parametrize("action", ["start", "stop", "status"])
@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.com", "x@127.0.0.1"])
def test_the_token_goes_to_no_other_machine(
    runtime: Path, action: str, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    token = runtime / "token"
    token.write_text("a token that is nobody else's")
    with endpoint() as stranger:  # which listens where 0.0.0.0 leads
        port = stranger.url.rpartition(":")[2]
        where = ["--host", host, "--port", port, "--token-file", str(token)]
        assert main(["engine", action, *where]) == 1
        assert stranger.requests == []
    assert f"{host} is not loopback" in capsys.readouterr().err


async def test_in_the_foreground_the_command_is_the_engine(
    standin: StandInModel, runtime: Path
) -> None:
    command = [sys.executable, "-m", "qcn_lsp.cli", "engine", "start", "--foreground"]
    place = ["--model", str(standin.folder), "--socket", str(runtime / "s")]
    engine = await asyncio.create_subprocess_exec(*command, *place, stderr=subprocess.DEVNULL)
    await until(lambda: bool(standin.events("started")))
    assert standin.pids() == [engine.pid]
    engine.terminate()
    assert await engine.wait() in (0, -signal.SIGTERM)


def test_one_that_does_not_answer_is_ended_by_its_process_id(
    standin: StandInModel, runtime: Path
) -> None:
    qcn("engine", "start", "--model", standin.folder)
    [pid] = standin.pids()
    os.kill(pid, signal.SIGSTOP)
    stopped = qcn("engine", "stop")
    assert f"Ended the engine (pid {pid})" in stopped.stdout
    assert not processes_of(runtime)


@pytest.mark.parametrize("stuck", [False, True])
async def test_one_that_its_starter_has_not_collected_has_ended_all_the_same(
    standin: StandInModel, runtime: Path, stuck: bool
) -> None:
    address = UnixAddress(runtime / "s")
    engine = left_uncollected(engine_command(str(standin.folder), address, EngineOptions(15)))
    await until(lambda: listens(address.socket))
    if stuck:
        engine.send_signal(signal.SIGSTOP)
    stopped = await asyncio.to_thread(qcn, "engine", "stop", "--socket", address.socket)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    said = "Ended" if stuck else "Stopped"
    assert stopped.stdout.startswith(f"{said} the engine (pid {engine.pid})")
    engine.wait()


def left_uncollected(command: list[str]) -> "subprocess.Popen[bytes]":
    """Start a process that is a zombie, once it has ended, until the caller asks for it."""
    return subprocess.Popen(command)


def test_one_that_cannot_be_stopped_keeps_no_other_from_it(
    standin: StandInModel, runtime: Path
) -> None:
    qcn("engine", "start", "--model", standin.folder)
    [pid] = standin.pids()
    silent = runtime / "qcn" / "engine-0.sock"  # looked at first, and of no process of ours
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(silent))
        listener.listen()
        stopped = qcn("engine", "stop")
    assert (stopped.returncode, stopped.stdout) == (1, f"Stopped the engine (pid {pid}).\n")
    assert stopped.stderr == (f"qcn: The engine at {silent} cannot be stopped: it did not answer\n")
    assert not processes_of(runtime)
