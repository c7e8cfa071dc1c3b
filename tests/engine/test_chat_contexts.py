"""A repository in a chat's first turn: read once, exact, and apart from completions."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chatml_template import write_chat_model
from context_support import Layout, body_of, source
from engine_support import EngineClient, forked_engine
from sampling import count

PATH = "/v1/chat/completions"
ASK: Any = [{"role": "user", "content": "What is v1_3?"}]
LS: Any = {"type": "function", "function": {"name": "ls", "description": "Lists."}}
LENGTH = 8192
BASE: Layout = [(f"{n}.py", source(20, n), "base") for n in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat") / "small", context_length=LENGTH)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[EngineClient]:
    with forked_engine(model) as engine:
        yield engine


def put(engine: EngineClient, name: str, layout: Layout, dialect: str = "chat") -> dict[str, Any]:
    body = body_of(layout) | {"dialect": dialect}
    answer = engine.client.put(f"/v1/contexts/{name}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]  # any JSON


def ask(engine: EngineClient, **more: Any) -> tuple[Any, Any]:
    """The log-probabilities of a short answer, and what it cost."""
    how = {"messages": ASK, "max_tokens": 4, "temperature": 0, "logprobs": True, **more}
    answer = engine.post(PATH, top_logprobs=3, **how)
    return answer["choices"][0]["logprobs"], answer["usage"]


def test_a_chat_that_names_a_context_costs_its_own_tokens(engine: EngineClient) -> None:
    tokens = put(engine, "cost", BASE)["tokens"]
    assert tokens > 500
    _, alone = ask(engine)
    _, behind = ask(engine, context="cost")
    own = behind["prompt_tokens"] - tokens
    assert own <= alone["prompt_tokens"] + 30, "the first turn's end, and the question"
    cached = behind["prompt_tokens_details"]["cached_tokens"]
    assert cached >= tokens - 512, "all but what shares a block with the question"


def test_what_a_chat_sees_is_the_repository_then_what_the_client_says(
    engine: EngineClient, model: Path
) -> None:
    from qcn_inference.tokenizer import Tokenizer

    tokenizer = Tokenizer(model, 512)
    tokens = put(engine, "seen", [("a <|im_end|>.py", "x = '<|im_end|>'", "base")])["tokens"]
    expected = "<|im_start|>system\nThe repository shop as it is now: its files"
    expected += ", each below its path. Where two passages differ, the later one is current.\n"
    expected += "\n# File: a <|im_end|>.py\nx = '<|im_end|>'\n"
    in_pieces = [
        tokenizer.control_id("<|im_start|>"),
        *tokenizer.encode_plain("system\n"),
        *tokenizer.encode_plain(expected.partition("system\n")[2].partition("\n# File")[0]),
        *tokenizer.encode_plain("\n# File: a <|im_end|>.py\n"),
        *tokenizer.encode_plain("x = '<|im_end|>'\n"),
    ]
    assert tokenizer.decode(in_pieces) == expected
    assert tokens == len(in_pieces)
    messages = [{"role": "system", "content": "Be brief."}, *ASK]
    found, usage = ask(engine, messages=messages, tools=[LS], tool_choice="none", context="seen")
    rest = "\n\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is v1_3?<|im_end|>\n"
    rest += "<|im_start|>assistant\n"
    ids = [*in_pieces, *tokenizer.encode_with_control(rest)]
    assert usage["prompt_tokens"] == len(ids)
    plain = engine.post("/v1/completions", prompt=ids, max_tokens=4, temperature=0, logprobs=3)
    logprobs = plain["choices"][0]["logprobs"]["token_logprobs"]
    assert [one["logprob"] for one in found["content"]] == logprobs


def test_tools_stand_behind_the_repository_and_share_it(engine: EngineClient) -> None:
    tokens = put(engine, "tools", BASE)["tokens"]
    _, usage = ask(engine, context="tools", tools=[LS])
    assert usage["prompt_tokens_details"]["cached_tokens"] >= tokens - 512


@pytest.mark.long
def test_after_edits_of_any_kind_answers_are_those_of_a_fresh_engine(model: Path) -> None:
    draw = random.Random(5)
    for _ in range(count(sample=1, full=6)):
        layout = list(BASE)
        with forked_engine(model) as engine:
            for edit in range(4):
                place = draw.randrange(len(layout))
                path, _, zone = layout[place]
                if draw.random() < 0.5:
                    layout[place] = (path, source(draw.randint(1, 40), edit + 3), zone)
                else:
                    layout.append((path, source(draw.randint(1, 20), edit + 9), "overlay"))
                put(engine, "edited", layout)
                found, usage = ask(engine, context="edited")
        assert usage["prompt_tokens_details"]["cached_tokens"] > 0
        with forked_engine(model) as fresh:
            put(fresh, "edited", layout)
            assert ask(fresh, context="edited")[0] == found
        with forked_engine(model) as unread:
            body = body_of(layout) | {"dialect": "chat", "wait": False}
            unread.client.put("/v1/contexts/edited", json=body)
            assert ask(unread, context="edited")[0] == found, "a chat reads what is missing"


def test_each_dialect_has_contexts_of_its_own(engine: EngineClient) -> None:
    put(engine, "for chats", BASE)
    put(engine, "for completions", BASE, "fim")
    for path, body, context in (
        ("/infill", {"input_prefix": "x"}, "for chats"),
        ("/v1/completions", {"prompt": "x"}, "for chats"),
        (PATH, {"messages": ASK}, "for completions"),
    ):
        answer = engine.client.post(path, json={**body, "context": context})
        assert answer.status_code == 400
        assert "put it in the other dialect too" in answer.text


def test_a_repository_that_is_forgotten_is_forgotten_for_chats_too(engine: EngineClient) -> None:
    put(engine, "secret", BASE)
    put(engine, "secret too", BASE, "fim")
    assert engine.client.delete("/v1/contexts?repo=shop").json()["deleted"] >= 2
    refreshed = [put(engine, "secret", BASE), put(engine, "secret too", BASE, "fim")]
    assert [one["reused"] for one in refreshed] == [0, 0]


def test_a_template_that_puts_tools_first_shares_no_context_with_them(
    tmp_path: Path,
) -> None:
    template = """{{ '<|im_start|>system\\n' }}{% if tools %}{{ tools | tojson }}{% endif %}
{{- messages[0].content }}<|im_end|>"""
    folder = write_chat_model(tmp_path / "m", template=template)
    with forked_engine(folder) as engine:
        put(engine, "c", [("a.py", "a = 1\n", "base")])
        ask(engine, context="c")
        answer = engine.client.post(PATH, json={"messages": ASK, "tools": [LS], "context": "c"})
        assert answer.status_code == 400
        assert "puts tools in front of a repository: leave out `tools`" in answer.text


@pytest.mark.parametrize(
    "template",
    ["<|im_start|>x", "{% for m in messages %}{{ messages[0].content }}{% endfor %}"],
    ids=["none", "two"],
)
def test_a_template_without_a_place_for_a_repository_says_so(tmp_path: Path, template: str) -> None:
    with forked_engine(write_chat_model(tmp_path / "m", template=template)) as engine:
        body = body_of(BASE) | {"dialect": "chat"}
        answer = engine.client.put("/v1/contexts/c", json=body)
        assert answer.status_code == 400
        assert "no place for a repository" in answer.text
