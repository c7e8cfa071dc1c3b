"""What every call has in common: errors, limits, disconnects, superseding, priorities, metrics."""

import json
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_support import (
    DEADLINE_SECONDS,
    LONG_ANSWER,
    LONG_CONTEXT,
    EngineProcess,
    engine_on,
)
from prometheus_client.parser import text_string_to_metric_families
from qcn_inference.grid import BLOCK

# Minutes of work, unless it is stopped.
LONG = {"prompt": "a = ", "max_tokens": LONG_ANSWER, "temperature": 0}


@pytest.fixture(scope="module")
def long_engine(long_model_folder: Path) -> Iterator[EngineProcess]:
    folder = Path(tempfile.mkdtemp(prefix="qcn-"))
    with engine_on(folder / "engine.sock", long_model_folder) as engine:
        engine.until("ready")
        yield engine
    shutil.rmtree(folder)


@pytest.fixture
def engine(long_engine: EngineProcess) -> EngineProcess:
    """An engine that has nothing to do: what the test before hung up on is seen to have ended."""
    until(lambda: metrics(long_engine)["qcn_queue_length"] == 0)
    until(lambda: long_engine.client.get("/health").json()["active_requests"] == 0)
    return long_engine


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def metrics(engine: EngineProcess) -> dict[str, float]:
    """All samples, those with a label as `name/label`."""
    families = text_string_to_metric_families(engine.client.get("/metrics").text)
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def ended(engine: EngineProcess, outcome: str) -> float:
    return metrics(engine).get(f"qcn_requests_total/{outcome}", 0)


@contextmanager
def raw_completion(engine: EngineProcess, body: dict[str, Any]) -> Iterator[socket.socket]:
    """Ask for a completion on a connection of its own, closed without reading the answer."""
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(engine.socket)
        connection.sendall(head.encode() + content)
        yield connection


def check_error(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == status
    for word in words:
        assert word in error["message"]


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/infill", "/tokenize", "/detokenize", "/shutdown"]
)
@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b'{"prompt": "\xff"}',
        b"\x00",
        b"null",
        b"[1]",
        b'"text"',
        b'{"prompt": NaN}' + b"[" * 9999,
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_body_that_is_no_json_object_is_refused(
    engine: EngineProcess, path: str, content: bytes
) -> None:
    check_error(engine.client.post(path, content=content), 400, "body")


def test_a_lone_surrogate_is_refused(engine: EngineProcess) -> None:
    """JSON can spell one, UTF-8 cannot."""
    check_error(engine.client.post("/tokenize", content=b'{"content": "\\ud800"}'), 400)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_huge_body_is_refused(engine: EngineProcess, declared: bool) -> None:
    line = b"x" * 2**20

    def chunks() -> Iterator[bytes]:
        yield b'{"input_prefix": "'
        for _ in range(50):
            yield line

    content = b"".join(chunks()) if declared else chunks()
    try:
        answer = engine.client.post("/infill", content=content)
    except (httpx.WriteError, httpx.RemoteProtocolError):
        pass  # the engine closed the connection on the sender, which is as clear
    else:
        check_error(answer, 413, "larger than")
    assert engine.client.get("/health").status_code == 200


def test_an_unknown_call_and_a_wrong_method(engine: EngineProcess) -> None:
    check_error(engine.client.get("/nothing"), 404, "/nothing")
    check_error(engine.client.get("/infill"), 405, "GET /infill")


def test_what_is_no_http_is_refused(engine: EngineProcess) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(engine.socket)
        connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


def test_models_are_listed(engine: EngineProcess) -> None:
    models = engine.client.get("/v1/models").json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["small"]


def test_a_model_is_asked_for_by_the_name_in_the_list(engine: EngineProcess) -> None:
    """Each model has an engine of its own: none answers in the place of another."""
    asked = {"prompt": "x", "max_tokens": 1}
    named = engine.client.post("/v1/completions", json=asked | {"model": "small"})
    assert named.json()["model"] == "small"
    other = engine.client.post("/v1/completions", json=asked | {"model": "large"})
    assert other.status_code == 404
    assert other.json()["error"]["type"] == "model_not_found"
    assert "serves small" in other.json()["error"]["message"]


def test_no_answer_allows_another_origin(engine: EngineProcess) -> None:
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    for answer in (
        engine.client.get("/health", headers=headers),
        engine.client.options("/infill", headers=headers),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_its_completion(engine: EngineProcess, stream: bool) -> None:
    before = ended(engine, "cancelled")
    with raw_completion(engine, LONG | {"stream": stream}) as connection:
        if stream:
            received = b""
            while b"data:" not in received:
                received += connection.recv(10_000)
        else:
            until(lambda: metrics(engine)["qcn_queue_length"] == 1)
    until(lambda: ended(engine, "cancelled") == before + 1)
    until(lambda: metrics(engine)["qcn_queue_length"] == 0)
    until(lambda: engine.client.get("/health").json()["active_requests"] == 0)


def test_a_client_may_hang_up_while_it_waits_for_its_turn(engine: EngineProcess) -> None:
    before = ended(engine, "cancelled")
    with raw_completion(engine, LONG):
        until(lambda: metrics(engine)["qcn_queue_length"] == 1)
        with raw_completion(engine, LONG | {"stream": True}):
            until(lambda: metrics(engine)["qcn_queue_length"] == 2)
        until(lambda: ended(engine, "cancelled") == before + 1)
        assert metrics(engine)["qcn_queue_length"] == 1
    until(lambda: ended(engine, "cancelled") == before + 2)


def test_a_newer_request_supersedes_the_older(engine: EngineProcess) -> None:
    """The older is answered with 409, or if it is streaming, with that as its last event."""
    with engine.client.stream(
        "POST", "/v1/completions", json=LONG | {"stream": True, "supersede": "file:///a.py"}
    ) as older:
        lines = older.iter_lines()
        first = next(lines)
        assert "choices" in first
        newer = engine.post("/infill", prompt="b", n_predict=1, supersede="file:///a.py")
        assert newer["tokens_predicted"] <= 1
        *_, error, done = [line for line in lines if line]
    assert done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["type"] == "superseded"


def test_a_superseded_request_in_one_piece_is_a_conflict(engine: EngineProcess) -> None:
    with raw_completion(engine, LONG | {"supersede": "k"}) as older:
        until(lambda: metrics(engine)["qcn_queue_length"] == 1)
        engine.post("/infill", prompt="b", n_predict=1, supersede="k")
        assert older.recv(10_000).startswith(b"HTTP/1.1 409")


def test_a_completion_overtakes_less_urgent_work(engine: EngineProcess) -> None:
    with raw_completion(engine, LONG | {"priority": "refresh"}):
        until(lambda: metrics(engine)["qcn_queue_length"] == 1)
        assert engine.post("/infill", prompt="b", n_predict=4)["tokens_evaluated"] > 0
        assert metrics(engine)["qcn_queue_length"] == 1  # still at it


def test_a_full_queue_refuses(engine: EngineProcess) -> None:
    with ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(raw_completion(engine, LONG))
        until(lambda: metrics(engine)["qcn_queue_length"] == 64)
        answer = engine.client.post("/v1/completions", json=LONG)
        check_error(answer, 503, "too many requests")
        assert answer.headers["retry-after"]
        # Not so the newer version of a request that is in the queue: see test_scheduler.py.
    until(lambda: metrics(engine)["qcn_queue_length"] == 0)


def test_metrics_count_what_was_done(engine: EngineProcess) -> None:
    ids = [200 - n % 60 for n in range(BLOCK + 60)]  # no other test begins so
    before = metrics(engine)
    engine.post("/v1/completions", prompt=ids, max_tokens=5, seed=2, temperature=3.0)
    engine.post("/v1/completions", prompt=ids, max_tokens=0)
    after = metrics(engine)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["qcn_prompt_tokens_total"] == 2 * len(ids)
    assert grown["qcn_cached_tokens_total"] == BLOCK
    assert 0 < grown["qcn_generated_tokens_total"] <= 5
    assert grown["qcn_prefill_seconds_total"] > 0
    assert after["qcn_state/ready"] == 1
    assert after["qcn_state/loading"] == 0
    assert after["qcn_resident_memory_bytes"] > 10_000_000


def test_health_of_a_ready_engine(engine: EngineProcess) -> None:
    answer = engine.client.get("/health")
    assert answer.status_code == 200
    health = answer.json()
    assert health["server"] == "qcn-engine"
    assert health["protocol"] == 1
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", health["version"])
    assert health["pid"] == engine.process.pid
    assert health["progress"]["done"] == health["progress"]["total"] > 0
    assert health["context_length"] == LONG_CONTEXT
    assert health["error"] is None


def test_accepted_drafts_are_reported_and_counted(engine: EngineProcess) -> None:
    """Random weights run into a circle soon, which is drafted from what was generated."""
    before = metrics(engine)
    asked = {"prompt": [20, 21, 22, 23] * 8, "max_tokens": 300, "temperature": 0}
    usage = engine.post("/v1/completions", **asked)["usage"]
    assert 0 < usage["draft_n_accepted"] <= usage["draft_n"]
    assert usage["draft_n_accepted"] < usage["completion_tokens"]
    after = metrics(engine)
    for metric, field in (("drafted", "draft_n"), ("accepted", "draft_n_accepted")):
        name = f"qcn_{metric}_tokens_total"
        assert after[name] - before[name] == usage[field]
