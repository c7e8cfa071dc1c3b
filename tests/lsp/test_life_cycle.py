"""The server's life, to the letter of the specification, seen from outside its process.

Each probe is what a client sends, what must be answered to it, and the code the process ends
with. Every probe ends the server's input, so that nothing can be forgotten unanswered.
"""

import os
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from lsp_wire import DEADLINE_SECONDS, PRODUCT, frame, initialize, notification, request, wire

NOT_INITIALIZED, INVALID_REQUEST, INVALID_PARAMS, CANCELLED = -32002, -32600, -32602, -32800
INITIALIZED = notification("initialized", {})
SHUTDOWN, EXIT = request("shutdown", "shutdown"), notification("exit")
OPEN = notification(
    "textDocument/didOpen",
    {"textDocument": {"uri": "file:///a", "languageId": "c", "version": 1, "text": "a"}},
)
TEXT = request("text", "test/text", {"uri": "file:///a"})
UNKNOWN_VALUES = {
    "general": {"positionEncodings": ["utf-64", "utf-32", "utf-8"], "regularExpressions": 5},
    "workspace": {"symbol": {"symbolKind": {"valueSet": [1, 9999]}}, "configuration": True},
    "textDocument": {"completion": 7, "codeAction": {"later": {"x": []}}},
    "window": "yes",
    "invented": [1, 2],
}


class Probe(NamedTuple):
    sent: Sequence[object]
    answers: list[tuple[object, object]]
    exit_code: int


OK = ("initialize", "ok")
DOWN = ("shutdown", "ok")
PROBES = {
    "an ordinary life": Probe([initialize(), INITIALIZED, SHUTDOWN, EXIT], [OK, DOWN], 0),
    "request before initialize": Probe(
        [request(7, "textDocument/completion", {}), initialize(), SHUTDOWN, EXIT],
        [(7, NOT_INITIALIZED), OK, DOWN],
        0,
    ),
    "shutdown before initialize": Probe([SHUTDOWN, EXIT], [("shutdown", NOT_INITIALIZED)], 1),
    "notification before initialize is dropped": Probe(
        [OPEN, initialize(), TEXT, SHUTDOWN, EXIT], [OK, ("text", "ok"), DOWN], 0
    ),
    "exit before initialize": Probe([EXIT], [], 1),
    "exit without shutdown": Probe([initialize(), INITIALIZED, EXIT], [OK], 1),
    "initialize twice": Probe(
        [initialize(), initialize(2), SHUTDOWN, EXIT], [OK, (2, INVALID_REQUEST), DOWN], 0
    ),
    "initialize as a notification": Probe(
        [notification("initialize", {"capabilities": {}}), TEXT, EXIT],
        [("text", NOT_INITIALIZED)],
        1,
    ),
    "initialize again after a malformed one": Probe(
        [request(1, "initialize", {}), initialize(), SHUTDOWN, EXIT],
        [(1, INVALID_PARAMS), OK, DOWN],
        0,
    ),
    "initialize without params": Probe([request(1, "initialize"), EXIT], [(1, INVALID_PARAMS)], 1),
    "capabilities of a later protocol": Probe(
        [initialize(capabilities=UNKNOWN_VALUES, trace="compact"), SHUTDOWN, EXIT], [OK, DOWN], 0
    ),
    "request after shutdown": Probe(
        [initialize(), SHUTDOWN, TEXT, EXIT], [OK, DOWN, ("text", INVALID_REQUEST)], 0
    ),
    "shutdown twice": Probe(
        [initialize(), SHUTDOWN, request(2, "shutdown"), EXIT],
        [OK, DOWN, (2, INVALID_REQUEST)],
        0,
    ),
    "shutdown with params": Probe(
        [initialize(), request(2, "shutdown", {}), EXIT], [OK, (2, "ok")], 0
    ),
    "shutdown as a notification": Probe([initialize(), notification("shutdown"), EXIT], [OK], 1),
    "initialize after shutdown": Probe(
        [initialize(), SHUTDOWN, initialize(2), EXIT], [OK, DOWN, (2, INVALID_REQUEST)], 0
    ),
    "notification after shutdown": Probe([initialize(), SHUTDOWN, OPEN, EXIT], [OK, DOWN], 0),
    "nothing at all": Probe([], [], 1),
    "end of input": Probe([initialize(), INITIALIZED], [OK], 1),
    "end of input after shutdown": Probe([initialize(), SHUTDOWN], [OK, DOWN], 0),
    "end of input within a message": Probe(
        [initialize(), frame(request(2, "test/echo"))[:-3]], [OK], 1
    ),
    "shutdown with a request in work": Probe(
        [initialize(), request(2, "test/wait"), SHUTDOWN, EXIT], [OK, (2, CANCELLED), DOWN], 0
    ),
    "exit with a request in work": Probe(
        [initialize(), request(2, "test/wait"), EXIT], [OK, (2, CANCELLED)], 1
    ),
    "end of input with a request in work": Probe(
        [initialize(), request(2, "test/wait")], [OK, (2, CANCELLED)], 1
    ),
    "exit with a thread that does not end": Probe(
        [initialize(), request(2, "test/thread"), SHUTDOWN, EXIT], [OK, (2, CANCELLED), DOWN], 0
    ),
}


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_life(probe: Probe) -> None:
    with wire() as server:
        server.send(*probe.sent)
        server.hang_up()
        assert server.exit_code() == probe.exit_code
        assert server.answers() == probe.answers
        assert b"Traceback" not in server.log


def test_a_notification_before_initialize_has_no_effect() -> None:
    with wire() as server:
        server.send(OPEN, initialize())
        assert server.ask(1, "test/text", {"uri": "file:///a"}) is None


def test_the_process_ends_when_nobody_reads_what_it_writes() -> None:
    unread, written = os.pipe()
    os.close(unread)
    server = subprocess.Popen(PRODUCT, stdin=subprocess.PIPE, stdout=written)
    os.close(written)
    assert server.stdin is not None
    with server.stdin as stdin:
        stdin.write(frame(initialize()))
        stdin.flush()
        assert server.wait(DEADLINE_SECONDS) == 1  # while its input is still open


def test_unknown_capabilities_leave_the_known_ones_in_force() -> None:
    with wire() as server:
        server.send(initialize(capabilities=UNKNOWN_VALUES))
        server.answer("initialize")
        assert server.ask(1, "test/state")["encoding"] == "utf-32"
        server.send(notification("initialized", {}))
        server.asked("workspace/configuration")
