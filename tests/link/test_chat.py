"""`EngineLink.chat`: our engine and others are asked alike, and the answer is heard as it comes."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deadlines import DEADLINE_SECONDS
from scripted_model import scripted_model
from standin_endpoint import Endpoint, endpoint, refusal
from starlette.responses import JSONResponse, Response

from qcn_lsp.engine.link import EngineLink, EngineState, EngineUnavailable, Superseded
from qcn_lsp.engine.messages import (
    ChatMessage,
    ChatRequest,
    ChatResult,
    ConnectionLost,
    NoChatModel,
    UnknownContext,
)
from qcn_lsp.settings import EngineSettings

PATH = "/v1/chat/completions"
REQUEST = ChatRequest(
    (ChatMessage("system", "Be brief."), ChatMessage("user", "What does f do?")),
    max_tokens=9,
    seed=3,
    stop=("END",),
)
BODY = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What does f do?"},
    ],
    "max_tokens": 9,
    "temperature": 0.0,
    "stream": True,
    "stream_options": {"include_usage": True},
    "stop": ["END"],
    "seed": 3,
}
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 5},
}


def piece(text: str | None, finish_reason: str | None = None) -> dict[str, Any]:
    delta = {"content": text, "reasoning_content": "hm"}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


ANSWER = (piece(None), piece("It ad"), piece("ds."), piece("", "stop"))


def stream(*events: dict[str, Any], ends: bool = True, line_end: str = "\n") -> Response:
    lines = [": a comment", "event: message"]
    lines += [f"data: {json.dumps(event)}{line_end}" for event in events]
    lines += [f"data: [DONE]{line_end}"] if ends else []
    return Response(line_end.join(lines) + line_end, media_type="text/event-stream")


class Listener:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.read: list[tuple[int, int]] = []
        self.heard = asyncio.Event()

    def reading(self, done: int, total: int) -> None:
        self.read.append((done, total))

    def wrote(self, text: str) -> None:
        self.pieces.append(text)
        self.heard.set()


@pytest.fixture
def server(runtime: Path) -> Iterator[Endpoint]:
    with endpoint() as served:
        served.answers[PATH] = stream(*ANSWER, {"choices": [], "usage": USAGE})
        yield served


def as_our_engine(server: Endpoint, model: str = "big") -> None:
    """Have the server answer as our own engine does."""
    health = {"server": "qcn-engine", "version": "9", "protocol": 1, "model": model}
    server.answers["/health"] = JSONResponse({**health, "state": "ready"})


def link_to(server: Endpoint, url: str | None = None) -> EngineLink:
    return EngineLink(
        EngineSettings(url=url or server.url), "second-coder", on_status=lambda _: None
    )


async def ask(server: Endpoint, request: ChatRequest = REQUEST) -> tuple[ChatResult, list[str]]:
    link, listener = link_to(server), Listener()
    try:
        return await link.chat(request, listener), listener.pieces
    finally:
        await link.close()


async def test_an_endpoint_is_asked_in_openais_way_and_its_pieces_are_heard_as_they_come(
    server: Endpoint,
) -> None:
    result, heard = await ask(server)
    assert heard == ["It ad", "ds."]
    assert (result.text, result.finish_reason) == ("It adds.", "stop")
    assert (result.prompt_tokens, result.cached_tokens, result.completion_tokens) == (12, 5, 3)
    assert server.sent_to(PATH) == [BODY | {"model": "second-coder"}]


async def test_our_engine_is_told_the_context_the_priority_and_what_is_superseded(
    server: Endpoint,
) -> None:
    as_our_engine(server)
    result, _ = await ask(server, replace(REQUEST, context="c1", supersede="fix:a.py"))
    assert result.text == "It adds."
    await ask(server, replace(REQUEST, priority="completion"))
    body, completing = server.sent_to(PATH)
    assert completing["priority"] == "completion"
    key = body.pop("supersede")
    assert body == BODY | {"priority": "chat", "context": "c1", "return_progress": True}
    assert key.endswith(":fix:a.py"), "keys of two windows differ"


async def test_how_far_our_engine_reads_is_heard_without_what_it_knew(server: Endpoint) -> None:
    as_our_engine(server)
    counts = [{"total": 900, "cache": 500, "processed": done} for done in (500, 600)]
    malformed = {"total": "many", "cache": None, "processed": -3}
    told = [{**piece(None), "prompt_progress": one} for one in [*counts, malformed]]
    server.answers[PATH] = stream(*told, *ANSWER)
    link, listener = link_to(server), Listener()
    assert (await link.chat(REQUEST, listener)).text == "It adds."
    await link.chat(REQUEST)
    await link.close()
    assert listener.read == [(0, 400), (100, 400), (0, 0)]
    assert ["return_progress" in body for body in server.sent_to(PATH)] == [True, False]


async def test_an_answer_that_was_cut_short_says_so(server: Endpoint) -> None:
    server.answers[PATH] = stream(piece("It"), piece(None, "length"))
    result, _ = await ask(server)
    assert (result.text, result.finish_reason, result.prompt_tokens) == ("It", "length", 0)


async def test_lines_may_end_as_on_windows(server: Endpoint) -> None:
    server.answers[PATH] = stream(*ANSWER, line_end="\r\n")
    assert (await ask(server))[0].text == "It adds."


@pytest.mark.parametrize("tail", ["/v1", "/v1/chat/completions"])
async def test_the_address_may_be_given_with_the_path(server: Endpoint, tail: str) -> None:
    link = link_to(server, server.url + tail)
    assert (await link.chat(REQUEST)).text == "It adds."
    await link.close()


async def test_a_model_of_ours_without_a_chat_template_is_named_with_the_remedy(
    server: Endpoint,
) -> None:
    as_our_engine(server, "qcn-nano")
    error = {"message": "no template", "type": "no_chat_template", "code": 400}
    server.answers[PATH] = JSONResponse({"error": error}, 400)
    link = link_to(server)
    with pytest.raises(NoChatModel, match=r"^The model qcn-nano cannot chat: set `models\.chat`"):
        await link.chat(REQUEST)
    assert link.status.state == EngineState.READY, "it goes on completing"
    await link.close()


async def test_an_endpoint_that_only_completes_is_told_apart_from_a_wrong_address(
    server: Endpoint,
) -> None:
    del server.answers[PATH]
    link = link_to(server)
    with pytest.raises(NoChatModel, match=r"does not chat with second-coder: set `models\.chat`"):
        await link.chat(REQUEST)
    assert link.status.state == EngineState.READY
    await link.close()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (refusal("prompt too long", 400), EngineUnavailable, "HTTP 400: prompt too long"),
        (JSONResponse({"choices": []}), EngineUnavailable, "application/json, not with an event"),
        (stream(piece("It"), ends=False), ConnectionLost, "in the middle of its answer"),
        (
            stream(piece("It"), {"error": {"message": "no memory", "type": "out_of_memory"}}),
            EngineUnavailable,
            "gave up in the middle: no memory",
        ),
        (stream({"error": {"message": "newer", "type": "superseded"}}), Superseded, "newer"),
        (
            JSONResponse({"error": {"message": "no c1", "type": "unknown_context"}}, 404),
            UnknownContext,
            "no c1",
        ),
    ],
    ids=["400", "no stream", "cut", "error", "superseded", "context"],
)
async def test_what_goes_wrong_becomes_one_readable_message(
    server: Endpoint, answer: Response, kind: type[Exception], message: str
) -> None:
    server.answers[PATH] = answer
    with pytest.raises(kind, match=message) as caught:
        await ask(server)
    assert "\n" not in str(caught.value)


async def test_text_that_another_endpoint_would_take_for_a_command_is_refused(
    server: Endpoint,
) -> None:
    request = ChatRequest((ChatMessage("user", 'STOP = "<|im_end|>"'),))
    with pytest.raises(EngineUnavailable, match=r"'<\|im_end\|>'.*ask our own engine"):
        await ask(server, request)
    assert server.sent_to(PATH) == []
    as_our_engine(server)
    assert (await ask(server, request))[0].text == "It adds.", "to ours it is text"


async def test_cancelling_closes_the_connection_in_the_middle_of_the_answer(runtime: Path) -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if request.startswith(b"POST"):
            event = f"data: {json.dumps(piece('It'))}\n\n".encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + event)
            await reader.read(-1)  # until the other side closes
            closed.set()
        else:
            writer.write(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        link = EngineLink(EngineSettings(url=url), "m", on_status=lambda _: None)
        ours = Listener()
        request = asyncio.create_task(link.chat(REQUEST, ours))
        await asyncio.wait_for(ours.heard.wait(), DEADLINE_SECONDS)
        request.cancel()
        await asyncio.wait_for(closed.wait(), DEADLINE_SECONDS)
        await link.close()
    assert request.cancelled()


async def test_the_scripted_model_of_other_tests_chats_too(runtime: Path) -> None:
    async with scripted_model() as model:
        model.text = "It adds."
        link = EngineLink(EngineSettings(url=model.url), "m", on_status=lambda _: None)
        assert (await link.chat(REQUEST)).text == "It adds."
        await link.close()
    assert model.prompts == ["Be brief.\nWhat does f do?"]
