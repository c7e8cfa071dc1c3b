"""The server as a process: what it writes where, what it imports, and whom it outlives."""

import subprocess
import sys

import pytest
from lsp_wire import (
    DEADLINE_SECONDS,
    PROBE,
    PRODUCT,
    initialize,
    notification,
    request,
    session,
    wire,
)

HEAVY = {"torch", "httpx", "rich", "transformers", "numpy", "psutil", "uvicorn", "starlette"}
HEAVY |= {"tree_sitter", "pygments", "ast_grep_py", "yaml"}


def test_standard_output_is_the_protocols_whoever_prints() -> None:
    with session() as server:
        assert server.ask(1, "test/print") is None
        server.send(request("last", "shutdown"))
        server.answer("last")
        server.hang_up()
        server.exit_code()
        assert server.stray == b""
        assert b"a library prints" in server.log
        assert b"a C library prints" in server.log
        assert b"a child process prints" in server.log


def test_a_child_process_cannot_eat_messages() -> None:
    code = (
        "import sys, subprocess, qcn_lsp.stdio as stdio; inlet, wire = stdio.claim();"
        "subprocess.run([sys.executable, '-c', 'import sys; sys.stdin.read()']);"
        "wire.write(next(stdio.read_frames(inlet)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=b"Content-Length: 2\r\n\r\n{}",
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    assert run.stdout == b"{}"


def test_initialize_is_answered_with_nothing_heavy_loaded() -> None:
    with wire() as server:
        server.send(initialize())
        server.answer("initialize")
        loaded = {name.partition(".")[0] for name in server.ask(1, "test/modules")}
        assert not loaded & HEAVY


def test_the_server_runs_where_torch_cannot_be_imported() -> None:
    without = "import sys; sys.modules['torch'] = None; from qcn_lsp.__main__ import main; main()"
    with wire((sys.executable, "-c", without)) as server:
        server.send(initialize())
        assert "result" in server.answer("initialize")


def test_the_server_ends_with_the_process_that_started_it() -> None:
    editor = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with wire() as server:
        server.send(initialize(processId=editor.pid))
        server.answer("initialize")
        assert server.ask(1, "test/echo", "still here") == "still here"
        editor.communicate(b"\n", timeout=DEADLINE_SECONDS)
        assert server.exit_code() == 1


WATCHES_WITHOUT_PIDFD = """
import errno, os, sys, threading

def unsupported(pid, flags=0):
    raise OSError(errno.ENOSYS, "not implemented")

os.pidfd_open = unsupported
from qcn_lsp.lifecycle import watch_process

gone = threading.Event()
watch_process(int(sys.argv[1]), lambda reason: gone.set())
print("watching", flush=True)
gone.wait()
print("gone", flush=True)
"""


@pytest.mark.parametrize("alive", [True, False])
def test_processes_are_watched_without_the_help_of_the_kernel_too(alive: bool) -> None:
    """In a process of its own: psutil remembers, for as long as one lives, what the kernel has."""
    editor = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    if not alive:
        editor.communicate(b"\n", timeout=DEADLINE_SECONDS)
    with subprocess.Popen(
        [sys.executable, "-c", WATCHES_WITHOUT_PIDFD, str(editor.pid)],
        stdout=subprocess.PIPE,
        text=True,
    ) as watcher:
        try:
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == "watching\n"
            if alive:
                assert watcher.poll() is None
                editor.communicate(b"\n", timeout=DEADLINE_SECONDS)
            output, _ = watcher.communicate(timeout=DEADLINE_SECONDS)
            assert output == "gone\n"
        finally:
            watcher.kill()


def test_the_server_ends_when_that_process_is_gone_already() -> None:
    editor = subprocess.Popen([sys.executable, "-c", ""])
    editor.wait(DEADLINE_SECONDS)
    with wire() as server:
        server.send(initialize(processId=editor.pid))
        assert server.exit_code() == 1


def test_no_source_text_is_logged_however_much_is() -> None:
    secret = "sk-very-secret"
    document = {"uri": "file:///a", "languageId": "c", "version": 1, "text": secret}
    broken = {"textDocument": {"uri": "file:///a", "version": secret}, "contentChanges": [secret]}
    with session(initializationOptions={"log": {"level": "debug"}}) as server:
        server.send(
            notification("textDocument/didOpen", {"textDocument": document}),
            notification("textDocument/didChange", broken),
            notification(secret.encode().hex(), secret),
            request("echo", "test/echo", secret),
            request("shutdown", "shutdown"),
            notification("exit"),
        )
        assert server.exit_code() == 0
        assert server.answer("echo")["result"] == secret
        assert b"test/echo" in server.log
        assert secret.encode() not in server.log


def test_the_command_line() -> None:
    def output(*arguments: str) -> str:
        run = subprocess.run(
            [*PRODUCT, *arguments], capture_output=True, text=True, timeout=DEADLINE_SECONDS
        )
        assert run.returncode == 0
        return run.stdout

    assert output("--version").startswith("qcn-lsp 0.")
    assert "Language Server Protocol" in output("--help")


def test_the_editors_that_add_stdio_are_served() -> None:
    with wire((*PRODUCT, "--stdio")) as server:
        server.send(initialize())
        assert "result" in server.answer("initialize")


def test_standard_error_may_be_closed() -> None:
    with wire(("sh", "-c", f'exec "{PROBE[0]}" "{PROBE[1]}" 2>&-')) as server:
        server.send(initialize())
        server.answer("initialize")
        assert server.ask(1, "test/print") is None
        server.hang_up()
        assert server.exit_code() == 1
        assert server.stray == b""
