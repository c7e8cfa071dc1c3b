"""`engine.url`: the link asks somebody else's endpoint, and starts nothing."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from deadlines import DEADLINE_SECONDS
from link_support import processes_of
from pydantic import SecretStr
from standin_endpoint import Endpoint, endpoint, html, redirect, refusal
from starlette.responses import JSONResponse, Response

from qcn_lsp.engine.link import (
    CompletionRequest,
    CompletionResult,
    ContextFile,
    EngineLink,
    EngineState,
    EngineStatus,
    EngineUnavailable,
)
from qcn_lsp.engine.prompt import STOP_STRINGS
from qcn_lsp.settings import EngineSettings

REQUEST = CompletionRequest(
    prefix="def f(",
    suffix="):\n    pass\n",
    path="src/a.py",
    repo="shop",
    extra=(ContextFile("src/b.py", "import a"),),
    max_tokens=9,
    stop=("\n",),
)


@pytest.fixture
def server(runtime: Path) -> Iterator[Endpoint]:
    with endpoint() as served:
        yield served
    assert not processes_of(runtime), "no process is started for an endpoint"


def link_to(
    url: str,
    *,
    token: str | None = None,
    model: str = "qcn-nano",
    seen: list[EngineStatus] | None = None,
) -> EngineLink:
    settings = EngineSettings(url=url, token=SecretStr(token) if token else None)
    on_status = (seen if seen is not None else []).append
    return EngineLink(settings, model, on_status=on_status)


async def ask(
    url: str,
    request: CompletionRequest = REQUEST,
    *,
    token: str | None = None,
    model: str = "qcn-nano",
) -> CompletionResult:
    link = link_to(url, token=token, model=model)
    try:
        return await link.complete(request)
    finally:
        await link.close()


async def test_it_is_asked_in_the_repository_format(server: Endpoint) -> None:
    result = await ask(server.url)
    assert (result.text, result.finish_reason) == ("x, y", "stop")
    assert (result.prompt_tokens, result.cached_tokens, result.completion_tokens) == (12, 5, 3)
    assert server.sent_to("/v1/completions") == [
        {
            "model": "first-coder",
            "prompt": "<|repo_name|>shop\n"
            "<|file_sep|>src/b.py\nimport a\n"
            "<|file_sep|>src/a.py\n"
            "<|fim_prefix|>def f(<|fim_suffix|>):\n    pass\n<|fim_middle|>",
            "max_tokens": 9,
            "temperature": 0,
            "stop": [*STOP_STRINGS, "\n"],
            "stream": False,
        }
    ]


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "/v1/completions"])
async def test_its_address_may_be_given_with_or_without_the_path(
    server: Endpoint, tail: str
) -> None:
    assert (await ask(server.url + tail)).text == "x, y"


async def test_the_model_that_is_set_is_asked_for_where_the_endpoint_has_it(
    server: Endpoint,
) -> None:
    await ask(server.url, model="second-coder")
    server.answers["/v1/models"] = refusal("no list", 404)
    await ask(server.url, model="only-by-name")
    models = [body["model"] for body in server.sent_to("/v1/completions")]
    assert models == ["second-coder", "only-by-name"]


async def test_no_text_of_the_repository_becomes_a_control_token(
    server: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    request = CompletionRequest(
        prefix='STOP = "<|im_end|>"\nprompt = "<|fim_suffix|>" + ',
        suffix='\nSEP = "<|file_sep|>"\nrest = 1\n',
        path="a.py",
        repo="<|repo_name|>",
        extra=(ContextFile("tokens.py", "<|endoftext|>"), ContextFile("b.py", "b = 1\n")),
    )
    with caplog.at_level(logging.WARNING, "qcn_lsp.engine"):
        await ask(server.url, request)
    [body] = server.sent_to("/v1/completions")
    assert body["prompt"] == (
        "<|repo_name|>repository\n<|file_sep|>b.py\nb = 1\n<|file_sep|>a.py\n"
        '<|fim_prefix|>" + <|fim_suffix|>\nrest = 1\n<|fim_middle|>'
    )
    assert "'tokens.py'" in caplog.text
    assert "3 passages of 'a.py'" in caplog.text


async def test_the_token_goes_there_and_nowhere_else(server: Endpoint) -> None:
    with endpoint() as other:
        for path in ("/health", "/v1/models", "/v1/completions"):
            server.answers[path] = redirect(other.url + path)
        with pytest.raises(EngineUnavailable, match=rf"redirects to {other.url}"):
            await ask(server.url, token="secret")
        assert other.requests == []
    assert {headers["authorization"] for _, headers, _ in server.requests} == {"Bearer secret"}


async def test_proxies_of_the_environment_are_not_used_for_this_machine(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert (await ask(server.url)).text == "x, y"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refusal("bad key", 401), r"refuses the token \(HTTP 401\): check `engine\.token`"),
        (refusal("no such model", 404), r"\(HTTP 404\): check `engine\.url`.*no such model"),
        (
            refusal("prompt too long", 400),
            r"HTTP 400: prompt too long\. Its own log may say more\.$",
        ),
        (JSONResponse({"detail": [{"msg": "stop"}]}, 422), r'HTTP 422: .*"msg": "stop"'),
        (html(), r"text/html.*not with a JSON object: is the address right\?"),
        (html(502), r"answered HTTP 502\. Its own log .* set `engine\.url` to another server\.$"),
        (refusal("slow down.", 429), r"429: slow down\. It is asked too often: try again later"),
        (html(501), r"HTTP 501\. It does not do .*: set `engine\.url` to .* OpenAI-compatible\.$"),
        (JSONResponse({"choices": []}), r"without `choices`"),
        (JSONResponse({"choices": [{"text": None}]}), r"without text"),
        (JSONResponse(["no", "object"]), r"not with a JSON object"),
        (Response(b"\xff\xfe", media_type="application/json"), r"not with a JSON object"),
    ],
    ids=[
        "token",
        "404",
        "400",
        "fastapi",
        "html",
        "502",
        "429",
        "501",
        "empty",
        "no text",
        "list",
        "bytes",
    ],
)
async def test_what_it_answers_wrongly_becomes_one_readable_message(
    server: Endpoint, answer: Response, message: str
) -> None:
    server.answers["/v1/completions"] = answer
    with pytest.raises(EngineUnavailable, match=message) as caught:
        await ask(server.url)
    assert "\n" not in str(caught.value)
    assert "<html>" not in str(caught.value)


async def test_an_address_without_a_listener_is_named_and_tried_again(server: Endpoint) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        seen: list[EngineStatus] = []
        link = link_to(url, seen=seen)
        with pytest.raises(EngineUnavailable, match=f"{url} cannot be reached"):
            await link.complete(REQUEST)
        assert [status.state for status in seen] == [EngineState.STARTING, EngineState.ERRORED]
        await link.close()


async def test_an_endpoint_that_is_silent_is_given_up(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcn_lsp.engine.dialects.HEALTH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EngineUnavailable, match=r"did not answer within 0\.2 seconds"):
            await ask(url)


async def test_our_own_engine_at_the_address_is_asked_as_such(server: Endpoint) -> None:
    health = {"server": "qcn-engine", "version": "9", "protocol": 1, "model": "big"}
    server.answers["/health"] = JSONResponse({**health, "state": "ready"})
    server.answers["/infill"] = JSONResponse({"content": "z", "stop_type": "limit"})
    link = link_to(server.url)
    result = await link.complete(REQUEST)
    assert (result.text, result.finish_reason, link.status.model) == ("z", "length", "big")
    await link.close()
    server.answers["/health"] = JSONResponse({**health, "state": "errored", "error": "no GPU"}, 503)
    with pytest.raises(EngineUnavailable, match="no GPU"):
        await ask(server.url)


async def test_a_cancelled_request_closes_its_connection(runtime: Path) -> None:
    closed = asyncio.Event()
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if request.startswith(b"POST"):
            asked.set()
            await reader.read(-1)  # until the other side closes
            closed.set()
        else:
            writer.write(
                b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        link = link_to(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        request = asyncio.create_task(link.complete(REQUEST))
        await asyncio.wait_for(asked.wait(), DEADLINE_SECONDS)
        request.cancel()
        await asyncio.wait_for(closed.wait(), DEADLINE_SECONDS)
        await link.close()
    assert request.cancelled()
