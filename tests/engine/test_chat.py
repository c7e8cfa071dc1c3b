"""`POST /v1/chat/completions` over real HTTP, with OpenAI's own client."""

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2  # what the client brings
import openai
import pytest
from chatml_template import CHATML, write_chat_model
from engine_support import EngineProcess, engine_on, forked_engine, parsed
from link_support import until
from openai import AsyncOpenAI, OpenAI
from qcn_inference.tokenizer import INFILL_TOKENS
from scripted_engine import scripted_engine
from written_calls import rendered

PATH = "/v1/chat/completions"
HELLO: Any = [{"role": "user", "content": "Hello"}]
LS: Any = {
    "type": "function",
    "function": {
        "name": "ls",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    },
}

QUOTED: Any = {"type": "function", "function": {"name": "!im_start"}}


@pytest.fixture(scope="module")
def chat_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """An engine whose model has a chat template, on loopback, as any client would reach it."""
    folder = tmp_path_factory.mktemp("chat")
    socket = Path(folder) / "s"
    with engine_on(socket, write_chat_model(folder / "small")) as engine:
        engine.until("ready")
        yield engine


@pytest.fixture
def client(chat_engine: EngineProcess) -> OpenAI:
    transport = httpx2.HTTPTransport(uds=chat_engine.socket)
    return OpenAI(
        base_url="http://engine/v1",
        api_key="none",
        http_client=httpx2.Client(transport=transport),
        max_retries=0,
    )


def test_the_official_client_is_answered(client: OpenAI, chat_engine: EngineProcess) -> None:
    answer = client.chat.completions.create(
        model="small", messages=HELLO, max_completion_tokens=5, temperature=0
    )
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.role) == ("length", "assistant")
    assert choice.message.tool_calls is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    plain = chat_engine.post("/v1/completions", prompt=prompt, max_tokens=5, temperature=0)
    assert choice.message.content == plain["choices"][0]["text"]
    assert answer.usage.prompt_tokens == plain["usage"]["prompt_tokens"]


def test_its_stream_is_the_same_answer_in_pieces(client: OpenAI) -> None:
    how: Any = {"model": "small", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**how)
    events = list(
        client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True})
    )
    assert events[0].choices[0].delta.role == "assistant"
    text = "".join(event.choices[0].delta.content or "" for event in events[:-1])
    assert text == whole.choices[0].message.content
    assert [event.choices[0].finish_reason for event in events[:-1]][-1] == "length"
    assert events[-1].usage is not None
    assert whole.usage is not None
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens == 12


async def test_the_asynchronous_client_streams_too(chat_engine: EngineProcess) -> None:
    transport = httpx2.AsyncHTTPTransport(uds=chat_engine.socket)
    async with AsyncOpenAI(
        base_url="http://engine/v1",
        api_key="none",
        http_client=httpx2.AsyncClient(transport=transport),
    ) as client:
        stream = await client.chat.completions.create(
            model="small", messages=HELLO, max_tokens=5, temperature=0, stream=True
        )
        reasons = [event.choices[0].finish_reason async for event in stream]
    assert reasons[-1] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_come_with_each_token(client: OpenAI, stream: bool) -> None:
    answer: Any = client.chat.completions.create(
        model="small",
        messages=HELLO,
        max_tokens=4,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        stream=stream,
    )
    choices = [event.choices[0] for event in (answer if stream else [answer])]
    found = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert len(found) == 4
    for token in found:
        assert [token.token, token.logprob] == [
            token.top_logprobs[0].token,
            token.top_logprobs[0].logprob,
        ]
        assert len(token.top_logprobs) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_is_asked_for_is_called(client: OpenAI, stream: bool) -> None:
    """This model repeats itself, so the limit leaves the arguments open; the wire is the same."""
    choice: Any = {"type": "function", "function": {"name": "ls"}}
    answer: Any = client.chat.completions.create(
        model="small",
        messages=HELLO,
        tools=[LS],
        tool_choice=choice,
        max_tokens=3,
        temperature=0,
        stream=stream,
    )
    if stream:
        calls = [call for e in answer for call in e.choices[0].delta.tool_calls or []]
    else:
        calls = answer.choices[0].message.tool_calls
        assert answer.choices[0].message.content is None
    assert calls[0].function.name == "ls"
    assert calls[0].id.startswith("call_")
    assert calls[0].type == "function"
    assert "".join(call.function.arguments for call in calls) == ""


def test_a_chat_that_goes_on_costs_what_was_added(chat_engine: EngineProcess) -> None:
    turns = [{"role": "system", "content": "Be brief. " * 20}, *HELLO]
    first = chat_engine.post(PATH, messages=turns, max_tokens=4, temperature=0)
    answered = first["choices"][0]["message"]
    again = chat_engine.post(PATH, messages=[*turns, answered, *HELLO], max_tokens=1)
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"] - len("<|im_start|>assistant\n")
    other = chat_engine.post(PATH, messages=[turns[0], {"role": "user", "content": "Bye"}])
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] > 100


def test_half_a_character_in_the_arguments_of_a_call_is_read_as_the_mark_of_one(
    chat_engine: EngineProcess,
) -> None:
    """A call that is sent back may hold one: arguments are JSON in JSON, which can spell it."""

    def read(path: str) -> int:
        function = {"name": "ls", "arguments": f'{{"path": "{path}"}}'}
        call = {"role": "assistant", "tool_calls": [{"function": function}]}
        answer = chat_engine.post(PATH, messages=[*HELLO, call], max_tokens=0)
        return int(answer["usage"]["prompt_tokens"])

    assert read(r"a\ud83d") == read("a\N{REPLACEMENT CHARACTER}")


def test_thoughts_are_switched_off_unless_a_request_switches_them_on(
    tmp_path: Path,
) -> None:
    template = "{% if enable_thinking %}<|im_start|>{% endif %}{{ messages[0].content }}"
    with forked_engine(write_chat_model(tmp_path / "m", template=template)) as engine:
        off = engine.post(PATH, messages=HELLO, max_tokens=0)
        on = engine.post(
            PATH, messages=HELLO, max_tokens=0, chat_template_kwargs={"enable_thinking": True}
        )
    assert on["usage"]["prompt_tokens"] == off["usage"]["prompt_tokens"] + 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "messages: Field required"),
        ({"messages": []}, "messages:"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [
                {"function": {"name": "f", "arguments": "[1]"}}]}]},
            "must be a JSON object, as text",
        ),
        ({"messages": HELLO, "tool_choice": "required"}, "tool_choice: goes with tools"),
        ({"messages": HELLO, "n": 2}, "n:"),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format.type"),
        ({"messages": HELLO, "tools": [{"type": "function", "function": {"name": "a>b"}}]}, "name"),
        ({"messages": HELLO * 300}, "tokens of a context of 1024"),
        ({"messages": [{"role": "user", "content": "x" * 10**6}]}, "longer than the model's"),
        ({"messages": [*HELLO, {"role": "system", "content": ""}]}, "no place for a system here"),
        ({"messages": HELLO, "tools": [QUOTED]}, "cannot be called im_start"),
        ({"messages": HELLO, "model": "gpt"}, "this engine serves small"),
        ({"messages": HELLO, "context": "nowhere"}, "no context 'nowhere'"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_in_openais_shape(
    client: OpenAI, body: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.APIStatusError) as told:
        client.post(PATH.removeprefix("/v1"), body=body, cast_to=object)
    assert told.value.status_code in (400, 404)
    assert isinstance(told.value.body, dict)
    assert message in told.value.body["message"]


def test_health_tells_which_template_it_is(chat_engine: EngineProcess) -> None:
    digest = hashlib.sha256(CHATML.encode()).hexdigest()
    found = chat_engine.client.get("/health").json()["chat_template"]
    assert found == {"file": "chat_template.jinja", "sha256": digest}


def test_a_model_without_a_template_says_that_it_only_completes(engine: EngineProcess) -> None:
    answer = engine.client.post(PATH, json={"messages": HELLO})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "no_chat_template"
    assert "the model only completes" in answer.json()["error"]["message"]


def test_a_model_that_does_not_fill_in_the_middle_chats_all_the_same(
    tmp_path: Path,
) -> None:
    folder = write_chat_model(tmp_path / "m", without=INFILL_TOKENS)
    with forked_engine(folder) as engine:
        assert engine.client.get("/health").json()["fim"] is False
        assert engine.post(PATH, messages=HELLO, max_tokens=5)["choices"]
        assert engine.post("/v1/completions", prompt="def f", max_tokens=2)["choices"]
        put = engine.client.put
        layout: Any = {"repo": "r", "segments": []}
        assert put("/v1/contexts/c", json={**layout, "dialect": "chat"}).status_code == 200
        for refused in (
            engine.client.post("/infill", json={"input_prefix": "a", "input_suffix": "b"}),
            engine.client.post("/v1/completions", json={"prompt": "a", "suffix": "b"}),
            put("/v1/contexts/d", json=layout),
        ):
            assert refused.status_code == 400
            assert refused.json()["error"]["type"] == "no_infill"
            assert "no tokens to fill in the middle" in refused.json()["error"]["message"]


def test_a_template_that_never_ends_fails_its_request_and_nothing_else(
    tmp_path: Path, socket_path: Path
) -> None:
    template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with engine_on(socket_path, write_chat_model(tmp_path / "m", template=template)) as engine:
        engine.until("ready")
        failed = engine.client.post(PATH, json={"messages": HELLO})
        assert failed.status_code == 500
        # The second on a machine so busy that 3 s of CPU time are half a minute.
        reasons = "took more than 3 s of CPU time|gave no answer in 30 s"
        assert re.search(f"chat_template.jinja failed: it ({reasons})", failed.text)
        engine.post("/v1/completions", prompt="def f", max_tokens=2)


async def test_a_client_that_hangs_up_ends_its_chat(tmp_path: Path, socket_path: Path) -> None:
    folder = write_chat_model(tmp_path / "m", context_length=2**17)
    with engine_on(socket_path, folder) as engine:
        engine.until("ready")
        body = json.dumps({"messages": HELLO, "temperature": 0, "stream": True})
        reader, writer = await asyncio.open_unix_connection(str(socket_path))
        head = f"POST {PATH} HTTP/1.1\r\nhost: e\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body.encode())
        await reader.readuntil(b'"content": ')
        assert engine.until("ready")["active_requests"] == 1
        writer.close()
        await until(lambda: engine.until("ready")["active_requests"] == 0)


def test_events_are_those_of_the_interface(chat_engine: EngineProcess) -> None:
    events = chat_engine.events(PATH, messages=HELLO, max_tokens=1)
    assert events[-1] == "[DONE]"
    assert {event["object"] for event in parsed(events)} == {"chat.completion.chunk"}


def test_a_stream_says_how_far_the_prompt_is_read(chat_engine: EngineProcess) -> None:
    messages = [{"role": "user", "content": "Where do I begin? " * 60}]
    asked: Any = {"messages": messages, "max_tokens": 1, "temperature": 0}
    events = parsed(chat_engine.events(PATH, **asked, return_progress=True))
    told = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    total = chat_engine.post(PATH, **asked)["usage"]["prompt_tokens"]
    assert len(told) > 1
    assert {one["total"] for one in told} == {total}
    read = [one["processed"] for one in told]
    assert read == sorted(set(read))
    assert read[0] == told[0]["cache"] < read[-1] < total
    # Behind the one that says who speaks, and before any text.
    assert all("prompt_progress" in event for event in events[1 : 1 + len(told)])
    silent = parsed(chat_engine.events(PATH, **asked))
    assert not any("prompt_progress" in event for event in silent)


TWO_CALLS = (
    "I look.\n\n" + rendered("ls", {"path": 'a "b" </function> null'}) + "\n" + rendered("ls", {})
)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = write_chat_model(tmp_path_factory.mktemp("scripted") / "small")
    with scripted_engine(folder, lambda _: TWO_CALLS) as url:
        yield OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


class TestToolCalls:
    """What a model would write is scripted; the parser, the wire and the client are real."""

    def calls(self, client: OpenAI, **more: Any) -> tuple[str | None, list[tuple[str, Any]], str]:
        """Text, calls and reason, of the whole answer, which its stream agrees with."""
        how: Any = {"model": "small", "messages": HELLO, "tools": [LS], **more}
        choice = client.chat.completions.create(**how).choices[0]
        found = [
            (call.function.name, json.loads(call.function.arguments))
            for call in choice.message.tool_calls or []
            if call.type == "function"
        ]
        with client.chat.completions.stream(**how) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_completion().choices[0]
        parsed_calls = [
            (call.function.name, json.loads(call.function.arguments))
            for call in streamed.message.tool_calls or []
        ]
        assert parsed_calls == found
        assert streamed.message.content == choice.message.content
        assert streamed.finish_reason == choice.finish_reason
        return choice.message.content, found, choice.finish_reason

    def test_text_and_calls_come_apart(self, scripted: OpenAI) -> None:
        first = ("ls", {"path": 'a "b" </function> null'})
        assert self.calls(scripted) == ("I look.", [first, ("ls", {})], "tool_calls")

    def test_only_one_comes_where_only_one_is_wanted(self, scripted: OpenAI) -> None:
        _, calls, reason = self.calls(scripted, parallel_tool_calls=False)
        assert [len(calls), reason] == [1, "tool_calls"]

    def test_where_no_tool_may_be_called_the_answer_is_text(self, scripted: OpenAI) -> None:
        text, calls, reason = self.calls(scripted, tool_choice="none")
        assert [text, calls, reason] == [TWO_CALLS, [], "stop"]
