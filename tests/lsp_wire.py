"""A language client made of bytes: it can say everything a client could, sound or not.

`Wire` starts a server as an editor does and keeps every message that comes back. What it awaits,
it awaits on an event; a server that hangs is killed after `DEADLINE_SECONDS`, and the test fails.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deadlines import DEADLINE_SECONDS as DEADLINE_SECONDS

HERE = Path(__file__).parent
CLIENTS = HERE / "lsp" / "clients"
PRODUCT = (sys.executable, "-m", "qcn_lsp")
PROBE = (sys.executable, str(HERE / "lsp_probe_server.py"))

Message = dict[str, Any]


def recorded(client: str) -> Message:
    """Return a client's `clientInfo` and `capabilities`, as recorded."""
    content: Message = json.loads((CLIENTS / f"{client}.json").read_text())
    return content


def frame(body: bytes | object, header: str = "Content-Length: {}\r\n\r\n") -> bytes:
    """Return a message as it goes over the wire; `body` may be any bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return header.format(len(data)).encode() + data


def request(msg_id: object, method: str, params: object = None) -> Message:
    message: Message = {"jsonrpc": "2.0", "id": msg_id, "method": method}
    return message if params is None else {**message, "params": params}


def notification(method: str, params: object = None) -> Message:
    message: Message = {"jsonrpc": "2.0", "method": method}
    return message if params is None else {**message, "params": params}


def initialize(msg_id: object = "initialize", **params: object) -> Message:
    """Return an `initialize` request, with the least a client must say."""
    defaults: Message = {"processId": None, "rootUri": None, "capabilities": {}}
    return request(msg_id, "initialize", {**defaults, **params})


class Wire:
    """One server process and the messages it has sent."""

    def __init__(self, command: tuple[str, ...], **environment: str) -> None:
        self.messages: list[Message] = []
        self.ended = False
        self._arrived = threading.Condition()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        self.pid = self._process.pid
        self.stray = b""
        self.log = b""
        self._threads = [
            threading.Thread(target=self._read_output), threading.Thread(target=self._read_log)
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def send(self, *messages: bytes | object) -> None:
        """Send messages; bytes go out as they are."""
        assert self._process.stdin is not None
        for message in messages:
            self._process.stdin.write(message if isinstance(message, bytes) else frame(message))
        self._process.stdin.flush()

    def wait_for(self, wanted: Callable[[Message], bool]) -> Message:
        """Return the first message, past or coming, that is wanted."""
        with self._arrived:
            found = self._arrived.wait_for(
                lambda: self.ended or any(map(wanted, self.messages)), DEADLINE_SECONDS
            )
            assert found, f"nothing came; the server's log:\n{self.log.decode()}"
            for message in self.messages:
                if wanted(message):
                    return message
        raise AssertionError(f"the server left without it; its log:\n{self.log.decode()}")

    def answer(self, msg_id: object) -> Message:
        """Wait for the answer to a request."""
        return self.wait_for(
            lambda m: m.get("id") == msg_id and "method" not in m and type(m["id"]) is type(msg_id)
        )

    def ask(self, msg_id: object, method: str, params: object = None) -> Any:
        """Send a request and return its result."""
        self.send(request(msg_id, method, params))
        answer = self.answer(msg_id)
        assert "result" in answer, answer
        return answer["result"]

    def asked(self, method: str) -> Message:
        """Wait for the server's own request or notification."""
        return self.wait_for(lambda m: m.get("method") == method)

    def answers(self) -> list[tuple[object, object]]:
        """Return all answers so far as (id, error code or "ok")."""
        with self._arrived:
            return [
                (m["id"], m["error"]["code"] if "error" in m else "ok")
                for m in self.messages
                if "method" not in m
            ]

    def hang_up(self) -> None:
        """End the server's input."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def exit_code(self) -> int:
        """Wait for the process to end by itself."""
        code = self._process.wait(DEADLINE_SECONDS)
        for thread in self._threads:
            thread.join()
        return code

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:
                continue  # closed by the test, or with input the server no longer took

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        out = self._process.stdout
        while line := out.readline():
            if not line.startswith(b"Content-Length: "):
                self.stray += line  # not the protocol's: a test looks at it
                continue
            assert out.readline() == b"\r\n"
            message = json.loads(out.read(int(line.split()[1])))
            with self._arrived:
                self.messages.append(message)
                self._arrived.notify_all()
        with self._arrived:
            self.ended = True
            self._arrived.notify_all()

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log += line


@contextmanager
def wire(command: tuple[str, ...] = PROBE, **environment: str) -> Iterator[Wire]:
    """Start a server; whatever happens, its process is gone afterwards."""
    server = Wire(command, **environment)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def session(
    client: str = "minimal", command: tuple[str, ...] = PROBE, **params: Any
) -> Iterator[Wire]:
    """Start a server and initialize it as a recorded client does."""
    with wire(command) as server:
        who = {key: value for key, value in recorded(client).items() if key != "source" and value}
        who.setdefault("capabilities", {})
        server.send(initialize(**{**who, **params}), notification("initialized", {}))
        assert "result" in server.answer("initialize")
        yield server
