"""Whatever comes over the wire, each request gets one answer and the server goes on.

The probes share one server, as they would in a bad day of one editor: a probe that broke it would
fail all that follow.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from lsp_wire import Wire, frame, notification, request, session

PARSE, INVALID_REQUEST, NO_METHOD = -32700, -32600, -32601
INVALID_PARAMS, INTERNAL, CANCELLED = -32602, -32603, -32800
INLINE = "textDocument/inlineCompletion"
HERE = {"textDocument": {"uri": "file:///gone"}, "position": {"line": 0, "character": 0}}
ASKED = {**HERE, "context": {"triggerKind": 1}}
LONG = "x" * 20_000_000


class Probe(NamedTuple):
    sent: Sequence[object]
    answers: list[tuple[object, object]]


def raw(text: bytes) -> Probe:
    """A message that is no JSON."""
    return Probe([frame(text)], [(None, PARSE)])


def odd(message: object, msg_id: object = None, code: int = INVALID_REQUEST) -> Probe:
    """A message that is JSON, but no JSON-RPC."""
    return Probe([message], [(msg_id, code)])


def asked(method: str, params: object, code: object) -> Probe:
    return Probe([request(1, method, params)], [(1, code)])


ECHO = request(1, "test/echo", "ü")
ECHOED: list[tuple[object, object]] = [(1, "ok")]
WAITING = request(1, "test/wait", "probe")
PROBES = {
    # What a message is
    "not JSON": raw(b"{'a': 1}"),
    "cut JSON": raw(b'{"jsonrpc": "2.0", "id": 1'),
    "empty body": raw(b""),
    "not utf-8": raw(b'{"jsonrpc": "2.0", "id": 1, "method": "\xff"}'),
    "utf-16": raw('{"jsonrpc": "2.0", "id": 1, "method": "test/echo"}'.encode("utf-16")),
    "NaN": raw(b'{"jsonrpc": "2.0", "id": 1, "method": "test/echo", "params": NaN}'),
    "nested too deeply": raw(b"[" * 100_000 + b"]" * 100_000),
    "a number too long": raw(b'{"id": %s}' % (b"9" * 5_000)),
    "a string": odd("hello"),
    "null": odd(None),
    "an empty object": odd({}),
    "a batch": odd([request(1, "test/echo"), request(2, "test/echo")]),
    "an empty batch": odd([]),
    "no version": odd({"id": 1, "method": "test/echo"}, 1),
    "version 1.0": odd({"jsonrpc": "1.0", "id": 1, "method": "test/echo"}, 1),
    "method is no string": odd({"jsonrpc": "2.0", "id": 1, "method": 5}, 1),
    "no method": odd({"jsonrpc": "2.0", "id": 1, "params": {}}, 1),
    "id null": odd(request(None, "test/echo")),
    "id true": odd(request(True, "test/echo")),
    "id 1.5": odd(request(1.5, "test/echo")),
    "id an object": odd(request({}, "test/echo")),
    "id a string": Probe([request("1", "test/echo")], [("1", "ok")]),
    "id negative": Probe([request(-1, "test/echo")], [(-1, "ok")]),
    "id in use": Probe(
        [WAITING, ECHO, notification("$/cancelRequest", {"id": 1})],
        [(1, INVALID_REQUEST), (1, CANCELLED)],
    ),
    "a key named jsonrpc": asked("test/echo", {"jsonrpc": "2.0", "id": 9, "method": "a"}, "ok"),
    "a key named jsonrpc in known params": asked(INLINE, {**ASKED, "jsonrpc": "3"}, "ok"),
    # What a request asks
    "unknown method": asked("textDocument/invented", {}, NO_METHOD),
    "unknown $/ request": asked("$/invented", {}, NO_METHOD),
    "a notification's method": asked("textDocument/didOpen", {}, NO_METHOD),
    "a method of the other direction": asked("window/showMessageRequest", {}, NO_METHOD),
    "params missing": Probe([request(1, INLINE)], [(1, INVALID_PARAMS)]),
    "params an array": asked(INLINE, [1], INVALID_PARAMS),
    "params empty": asked(INLINE, {}, INVALID_PARAMS),
    "params a string": asked(INLINE, "x", INVALID_PARAMS),
    "position negative": asked(
        INLINE, {**ASKED, "position": {"line": -1, "character": 0}}, INVALID_PARAMS
    ),
    "position of words": asked(
        INLINE, {**ASKED, "position": {"line": "a", "character": 0}}, INVALID_PARAMS
    ),
    "position far outside": asked(
        INLINE, {**ASKED, "position": {"line": 2**32, "character": 2**40}}, "ok"
    ),
    "a document that is not open": asked(INLINE, ASKED, "ok"),
    "a name that is no text": asked(
        INLINE, {**ASKED, "textDocument": {"uri": "file:///\ud800"}}, "ok"
    ),
    "context of words": asked(INLINE, {**ASKED, "context": "now"}, INVALID_PARAMS),
    "unknown command": asked("workspace/executeCommand", {"command": "invented"}, INVALID_PARAMS),
    "command without its argument": asked(
        "workspace/executeCommand", {"command": "test.wait"}, INVALID_PARAMS
    ),
    "a huge request": asked("test/echo", LONG, "ok"),
    # What needs no answer
    "unknown notification": Probe([notification("invented", {})], []),
    "unknown $/ notification": Probe([notification("$/invented", {})], []),
    "malformed notification": Probe([notification("textDocument/didOpen", {"x": 1})], []),
    "a request's method": Probe([notification(INLINE, ASKED)], []),
    "failing notification": Probe([notification("test/notifyAndRaise", {})], []),
    "cancelling nothing": Probe([notification("$/cancelRequest", {"id": 99})], []),
    "cancelling without id": Probe([notification("$/cancelRequest", {})], []),
    "cancelling an object": Probe([notification("$/cancelRequest", {"id": {}})], []),
    "a response nobody asked for": Probe([{"jsonrpc": "2.0", "id": 5, "result": 1}], []),
    "an error nobody caused": Probe(
        [{"jsonrpc": "2.0", "id": None, "error": {"code": 1, "message": "?"}}], []
    ),
    "a response with a request's id": Probe(
        [
            WAITING,
            {"jsonrpc": "2.0", "id": 1, "result": 1},
            notification("$/cancelRequest", {"id": 1}),
        ],
        [(1, CANCELLED)],
    ),
    # What handlers do
    "handler raises": asked("test/raise", {}, INTERNAL),
    "handler exits": asked("test/exit", {}, INTERNAL),
    "result NaN": asked("test/notJson", "nan", INTERNAL),
    "result no JSON at all": asked("test/notJson", {}, INTERNAL),
    # Headers
    "header in other letters": Probe([frame(ECHO, "content-length:{}\r\n\r\n")], ECHOED),
    "header without carriage returns": Probe([frame(ECHO, "Content-Length: {}\n\n")], ECHOED),
    "header with a type": Probe(
        [frame(ECHO, "Content-Type: a/b; charset=utf8\r\nContent-Length: {}\r\n\r\n")], ECHOED
    ),
    "header with another charset": Probe(
        [frame(ECHO, "Content-Length: {}\r\nContent-Type: a/b; charset=latin-1\r\n\r\n")],
        [(None, PARSE)],
    ),
    "header of another kind": Probe([frame(ECHO, "X-Y: z\r\nContent-Length: {}\r\n\r\n")], ECHOED),
    "empty lines between messages": Probe([b"\r\n\r\n", ECHO], ECHOED),
    "no length": Probe([b"X-Y: z\r\n\r\n{}\r\n"], [(None, PARSE)]),
    "length negative": Probe([frame({}, "Content-Length: -5\r\n\r\n"), b"\r\n"], [(None, PARSE)]),
    "length beyond reason": Probe(
        [frame({}, "Content-Length: 1{:030}\r\n\r\n"), b"\r\n"], [(None, PARSE)]
    ),
    "length zero": Probe([b"Content-Length: 0\r\n\r\n"], [(None, PARSE)]),
    "length too short": Probe([b"Content-Length: 5\r\n\r\n" + b'{"a": "bcdef"}'], [(None, PARSE)]),
    "not a header": Probe([b"GET / HTTP/1.1\r\n\r\n"], [(None, PARSE)]),
    "noise without a line end": Probe([b"\0" * 100_000, b"\r\n"], [(None, PARSE)]),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with session() as server:
        yield server
        server.send(request("last", "shutdown"), notification("exit"))
        assert server.exit_code() == 0
        assert server.stray == b""


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return itertools.count()


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_robustness(probe: Probe, server: Wire, numbers: Iterator[int]) -> None:
    server.messages.clear()
    server.send(*probe.sent)
    # Two, for the handlers that take another turn of the event loop.
    ends = [f"end {number} of probe {next(numbers)}" for number in range(2)]
    for end in ends:
        server.ask(end, "test/echo")
    assert [answer for answer in server.answers() if answer[0] not in ends] == probe.answers


def test_a_length_too_long_costs_the_next_message_and_no_more(server: Wire) -> None:
    server.messages.clear()
    too_long = frame(request(1, "test/echo"), "Content-Length: 1{:03}\r\n\r\n")
    server.send(too_long, request(2, "test/echo", "y" * 1_200), request(3, "test/echo"))
    server.answer(3)
    assert [code for msg_id, code in server.answers() if msg_id is None] == [PARSE]
    assert (3, "ok") in server.answers()


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("test/raise", {}, "test/raise failed: ValueError: the handler's reason"),
        ("test/notJson", {}, "test/notJson failed: TypeError: Object of type object is not JSON"),
        (INLINE, {**ASKED, "position": {}}, "Invalid Params: required field missing @ $.position"),
    ],
)
def test_an_error_says_what_is_wrong(
    server: Wire, method: str, params: object, message: str
) -> None:
    server.messages.clear()
    server.send(request("why", method, params))
    assert server.answer("why")["error"]["message"].startswith(message)


def test_text_that_no_encoding_can_hold_comes_through(server: Wire) -> None:
    lone = "\ud83d"
    assert server.ask("lone", "test/echo", lone) == lone
