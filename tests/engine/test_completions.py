"""`POST /v1/completions` over real HTTP."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import CONTEXT_LENGTH, VOCAB_SIZE, EngineProcess, parsed
from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle
from qcn_inference.grid import BLOCK
from qcn_inference.tokenizer import Tokenizer
from sampling import examples

PROMPT = "def f(x):\n    "


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["text"]
    return text


def test_log_probabilities_of_a_prompt_are_those_of_transformers(
    engine: EngineProcess, model_folder: Path
) -> None:
    ids = torch.randint(0, VOCAB_SIZE, (700,), generator=torch.Generator().manual_seed(1))
    answer = engine.post(
        "/v1/completions", prompt=ids.tolist(), max_tokens=0, echo=True, logprobs=5
    )
    expected = torch.log_softmax(Oracle(model_folder).prefill(ids)[0], dim=-1)
    found = answer["choices"][0]["logprobs"]
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    values = torch.tensor(found["token_logprobs"][1:])
    torch.testing.assert_close(values, expected[range(699), ids[1:]], rtol=0, atol=1e-4)
    top = torch.tensor(
        [sorted(entry.values(), reverse=True)[:5] for entry in found["top_logprobs"][1:]]
    )
    torch.testing.assert_close(top, expected[:-1].topk(5).values, rtol=0, atol=1e-4)


def test_greedy_tokens_are_those_of_transformers(
    engine: EngineProcess, model_folder: Path, tokenizer: Tokenizer
) -> None:
    ids = list(range(30, 60))
    answer = engine.post("/v1/completions", prompt=ids, max_tokens=20, temperature=0, logprobs=1)
    expected, _ = Oracle(model_folder).greedy(torch.tensor(ids), 20)
    labels = [tokenizer.token_label(token) for token in expected[30:].tolist()]
    found = answer["choices"][0]["logprobs"]["tokens"]
    assert len(found) > 0
    assert found == labels[: len(found)]
    if len(found) < 20:
        assert int(expected[30 + len(found)]) in tokenizer.stop_ids


def test_the_shape_of_an_answer(engine: EngineProcess) -> None:
    answer = engine.post("/v1/completions", prompt=PROMPT, max_tokens=3, seed=1, logprobs=0)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "small"
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] == "length"
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == 3
    # OpenAI always adds the token itself to the alternatives, here to none.
    assert [list(entry) for entry in logprobs["top_logprobs"]] == [[t] for t in logprobs["tokens"]]
    usage = answer["usage"]
    assert usage["completion_tokens"] == 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + 3


def test_offsets_point_into_the_text(engine: EngineProcess) -> None:
    answer = engine.post("/v1/completions", prompt="é = x\n", max_tokens=0, echo=True, logprobs=0)
    text, logprobs = text_of(answer), answer["choices"][0]["logprobs"]
    assert text == "é = x\n"
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert text.startswith(token, offset)


def test_text_and_ids_are_the_same_prompt(engine: EngineProcess, tokenizer: Tokenizer) -> None:
    """Text in this call is a raw prompt: `<|fim_prefix|>` in it is the control token."""
    raw = "<|fim_prefix|>a = <|fim_suffix|>\n<|fim_middle|>"
    ids = tokenizer.encode_with_control(raw)
    assert len(ids) < 10
    same = [raw, [raw], ids, [ids]]
    answers = [
        engine.post("/v1/completions", prompt=prompt, temperature=0, max_tokens=8)
        for prompt in same
    ]
    assert {answer["usage"]["prompt_tokens"] for answer in answers} == {len(ids)}
    assert len({text_of(answer) for answer in answers}) == 1


def test_a_suffix_makes_a_fill_in_the_middle_prompt(
    engine: EngineProcess, tokenizer: Tokenizer
) -> None:
    """Both ends are plain text then."""
    hostile = "a<|fim_middle|>b"
    filled = engine.post("/v1/completions", prompt=hostile, suffix=hostile, temperature=0)
    plain = tokenizer.encode_plain(hostile)
    control = tokenizer.control_id
    ids = [control("<|fim_prefix|>"), *plain, control("<|fim_suffix|>"), *plain]
    by_hand = engine.post(
        "/v1/completions", prompt=[*ids, control("<|fim_middle|>")], temperature=0
    )
    assert text_of(filled) == text_of(by_hand)
    assert filled["usage"]["prompt_tokens"] == by_hand["usage"]["prompt_tokens"]


def test_a_suffix_is_never_cut(engine: EngineProcess, tokenizer: Tokenizer) -> None:
    """Unlike `/infill`, which chooses what to leave out and says so."""
    suffix = "x = y\n" * 150
    answer = engine.post("/v1/completions", prompt="a", suffix=suffix, max_tokens=1)
    tokens = len(tokenizer.encode_plain("a")) + len(tokenizer.encode_plain(suffix))
    assert answer["usage"]["prompt_tokens"] == tokens + 3 > 600


def test_echo_gives_the_prompt_back(engine: EngineProcess) -> None:
    answer = engine.post("/v1/completions", prompt=PROMPT, echo=True, max_tokens=2, seed=3)
    assert text_of(answer).startswith(PROMPT)


def test_a_prompt_that_is_continued_is_read_again_from_its_last_block(
    engine: EngineProcess,
) -> None:
    ids = [40 + n % 7 for n in range(BLOCK + 90)]
    engine.post("/v1/completions", prompt=ids, max_tokens=1)
    answer = engine.post("/v1/completions", prompt=[*ids, 50, 51], max_tokens=1)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == BLOCK


@pytest.mark.long
@examples(sample=15, full=100)
@given(
    seed=st.integers(0, 1000),
    max_tokens=st.integers(0, 30),
    stop=st.lists(st.sampled_from(["e", "\n", "self", " t", "tok", "en_"]), max_size=3),
    logprobs=st.none() | st.integers(0, 3),
    echo=st.booleans(),
)
def test_a_stream_says_what_the_answer_in_one_piece_says(
    engine: EngineProcess,
    seed: int,
    max_tokens: int,
    stop: list[str],
    logprobs: int | None,
    echo: bool,
) -> None:
    body = {
        "prompt": PROMPT,
        "seed": seed,
        "max_tokens": max_tokens,
        "stop": stop,
        "logprobs": logprobs,
        "echo": echo,
    }
    whole = engine.post("/v1/completions", **body)["choices"][0]
    events = engine.events("/v1/completions", **body)
    assert events[-1] == "[DONE]"
    parts = [event["choices"][0] for event in parsed(events)]
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1]["finish_reason"] == whole["finish_reason"]
    assert not any(word in whole["text"].removeprefix(PROMPT if echo else "") for word in stop)
    if logprobs is not None:
        streamed: dict[str, list[Any]] = {
            name: [value for part in parts for value in part["logprobs"][name]]
            for name in whole["logprobs"]
        }
        assert streamed["tokens"] == whole["logprobs"]["tokens"]
        assert streamed["text_offset"] == whole["logprobs"]["text_offset"]
        # One of the two may have read the prompt in two pieces, around a cached state.
        for name in ("token_logprobs", "top_logprobs"):
            for value, other in zip(streamed[name], whole["logprobs"][name], strict=True):
                assert value == (other and pytest.approx(other, abs=1e-4))


def test_usage_is_streamed_when_asked_for(engine: EngineProcess) -> None:
    events = parsed(
        engine.events(
            "/v1/completions",
            prompt=PROMPT,
            max_tokens=2,
            temperature=0,
            stream_options={"include_usage": True},
        )
    )
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["prompt: Field required"]),
        ({"prompt": 5}, ["prompt"]),
        ({"prompt": []}, ["prompt: holds no token"]),
        ({"prompt": ""}, ["prompt: holds no token"]),
        ({"prompt": ["a", "b"]}, ["one prompt a request"]),
        ({"prompt": [[1], [2]]}, ["one prompt a request"]),
        ({"prompt": [-1]}, ["prompt"]),
        ({"prompt": [VOCAB_SIZE]}, [f"outside 0 to {VOCAB_SIZE - 1}"]),
        ({"prompt": "a", "max_tokens": "5"}, ["max_tokens", "valid integer"]),
        ({"prompt": "a", "max_tokens": -1}, ["max_tokens"]),
        ({"prompt": "a", "max_tokens": CONTEXT_LENGTH}, [f"context of {CONTEXT_LENGTH} tokens"]),
        ({"prompt": "x y " * CONTEXT_LENGTH}, [f"context of {CONTEXT_LENGTH} tokens"]),
        ({"prompt": "x" * 10_000_000}, [f"context of {CONTEXT_LENGTH} tokens"]),
        ({"prompt": "a", "temperature": -0.1}, ["temperature"]),
        ({"prompt": "a", "top_p": 1.1}, ["top_p"]),
        ({"prompt": "a", "n": 2}, ["n: Input should be 1"]),
        ({"prompt": "a", "best_of": 2}, ["best_of"]),
        ({"prompt": "a", "logprobs": 21}, ["logprobs"]),
        ({"prompt": "a", "stop": [str(n) for n in range(17)]}, ["stop", "16"]),
        ({"prompt": "a", "stop": ""}, ["stop", "must not be empty"]),
        ({"prompt": "a", "stream": "yes"}, ["stream"]),
        ({"prompt": "a", "presence_penalty": 0.5}, ["presence_penalty"]),
        ({"prompt": "a", "logit_bias": {"1": 2.0}}, ["logit_bias"]),
        ({"prompt": "a", "priority": "first"}, ["priority"]),
        ({"prompt": [1], "suffix": "b"}, ["suffix"]),
        ({"prompt": "a", "suffix": "b", "echo": True}, ["suffix"]),
        ({"prompt": "a", "suffix": "b" * 20_000}, [f"context of {CONTEXT_LENGTH} tokens"]),
    ],
    ids=lambda value: str(value)[:50],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_served_is_named(
    engine: EngineProcess, body: dict[str, Any], words: list[str], stream: bool
) -> None:
    answer = engine.client.post("/v1/completions", json={"stream": stream} | body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == 400
    assert error["type"] == "invalid_request_error"
    for word in words:
        assert word in error["message"]
    assert len(error["message"]) < 1000  # quotes nothing of the request
