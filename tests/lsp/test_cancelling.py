"""A cancelled request is answered at once, once, and its work ends where it can be ended."""

from collections.abc import Iterator
from typing import Any

import pytest
from lsp_wire import Wire, notification, request, session

CANCELLED = -32800
COMMAND = {"command": "test.wait", "arguments": ["command"]}


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with session() as server:
        yield server


def begin(server: Wire, msg_id: str, method: str, params: Any) -> None:
    """Send a request and wait until its handler is at work."""
    server.messages.clear()
    server.send(request(msg_id, method, params))
    server.asked("test/waiting")


@pytest.mark.parametrize(
    ("method", "params", "ends"),
    [
        ("test/wait", "async", True),
        ("test/stubborn", "stubborn", True),
        ("workspace/executeCommand", COMMAND, True),
        ("test/thread", "thread", False),
    ],
)
def test_one_answer_at_once(server: Wire, method: str, params: Any, ends: bool) -> None:
    begin(server, "a", method, params)
    server.send(notification("$/cancelRequest", {"id": "a"}))
    assert server.answer("a")["error"]["code"] == CANCELLED
    if ends:
        server.asked("test/ended")
    server.ask("unblock", "test/unblock")
    # A late result would have come before this answer.
    server.ask("later", "test/echo")
    assert server.answers() == [("a", CANCELLED), ("unblock", "ok"), ("later", "ok")]


def test_cancelling_what_is_answered_already_changes_nothing(server: Wire) -> None:
    server.messages.clear()
    server.ask("a", "test/echo")
    server.send(notification("$/cancelRequest", {"id": "a"}))
    server.ask("later", "test/echo")
    assert server.answers() == [("a", "ok"), ("later", "ok")]


def test_cancelling_twice_is_answered_once(server: Wire) -> None:
    begin(server, "a", "test/wait", "twice")
    cancel = notification("$/cancelRequest", {"id": "a"})
    server.send(cancel, cancel)
    server.ask("later", "test/echo")
    assert server.answers() == [("a", CANCELLED), ("later", "ok")]


def test_an_id_may_be_used_again_after_cancelling(server: Wire) -> None:
    begin(server, "a", "test/stubborn", "first")
    server.send(notification("$/cancelRequest", {"id": "a"}), request("a", "test/echo", 5))
    server.ask("later", "test/echo")
    assert server.answers() == [("a", CANCELLED), ("a", "ok"), ("later", "ok")]


def test_the_log_names_no_cancelled_request_and_no_whole_id() -> None:
    with session() as server:
        begin(server, "cancelled", "test/wait", "log")
        server.send(notification("$/cancelRequest", {"id": "cancelled"}))
        assert server.answer("cancelled")["error"]["code"] == CANCELLED
        unknown = "x" * 1000
        server.send(request(unknown, "test/noSuchMethod"))
        assert "error" in server.answer(unknown)
        server.send(request("last", "shutdown"))
        server.answer("last")
        server.hang_up()
        server.exit_code()
        assert b"answered 'cancelled'" not in server.log
        assert b"answered 'xxx" in server.log
        assert b"x" * 60 not in server.log
