"""`POST /infill`, `/tokenize` and `/detokenize` over real HTTP: llama.cpp's, for its plugins."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from engine_support import CONTEXT_LENGTH, CONTROL_STRINGS, EngineProcess, forked_engine, parsed
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.tokenizer import Tokenizer
from sampling import examples

# What llama.vim sends for a completion (autoload/llama.vim, `s:fim`) and to warm the cache
# (`s:ring_update`), values aside.
LLAMA_VIM_FIM = {
    "input_prefix": "import os\n\n",
    "input_suffix": ":\n    pass\n",
    "input_extra": [
        {"text": "def other():\n    return 1\n", "time": [5, 123456], "filename": "lib/other.py"}
    ],
    "prompt": "def main(",
    "n_predict": 16,
    "stop": [],
    "n_indent": 0,
    "top_k": 40,
    "top_p": 0.90,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 250,
    "response_fields": [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/prompt_per_token_ms",
        "timings/prompt_per_second",
        "timings/predicted_n",
        "timings/predicted_ms",
        "timings/predicted_per_token_ms",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ],
}
LLAMA_VIM_WARM_UP = {
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": LLAMA_VIM_FIM["input_extra"],
    "prompt": "",
    "n_predict": 0,
    "temperature": 0.0,
    "stream": False,
    "samplers": [],
    "cache_prompt": True,
    "t_max_prompt_ms": 1,
    "t_max_predict_ms": 1,
    "response_fields": [""],
}


def test_what_llama_vim_sends_is_answered_as_it_reads_it(engine: EngineProcess) -> None:
    warm_up = engine.client.post("/infill", json=LLAMA_VIM_WARM_UP)
    assert warm_up.json() == {}
    answer = engine.post("/infill", **LLAMA_VIM_FIM)
    assert list(answer) == LLAMA_VIM_FIM["response_fields"]
    assert isinstance(answer["content"], str)
    assert answer["truncated"] is False
    # The other file was read by the first request.
    assert answer["tokens_cached"] > 0
    assert 0 < answer["timings/predicted_n"] <= 16


def test_what_llama_vscode_sends_is_answered_as_it_reads_it(engine: EngineProcess) -> None:
    answer = engine.post(
        "/infill",
        input_prefix="a = 1\n",
        input_suffix="\n",
        input_extra=[{"text": "b = 2\n", "time": 1700000000000, "filename": "b.py"}],
        prompt="c = ",
        n_predict=8,
        top_k=40,
        top_p=0.99,
        stream=False,
        samplers=["top_k", "top_p", "infill"],
        cache_prompt=True,
        n_indent=4,
        t_max_prompt_ms=500,
        t_max_predict_ms=2500,
        lora=[{"id": 0, "scale": 0.5}],
    )
    assert answer["stop"] is True
    assert answer["stop_type"] in ("eos", "limit")
    assert answer["stopping_word"] == ""
    assert answer["model"] == "small"
    timings = answer["timings"]
    assert timings["prompt_n"] + timings["cache_n"] == answer["tokens_evaluated"]
    assert timings["cache_n"] == answer["tokens_cached"]
    assert timings["predicted_n"] == answer["tokens_predicted"]
    for name in ("prompt_ms", "prompt_per_second", "predicted_ms", "predicted_per_second"):
        assert timings[name] >= 0
    assert 0 <= timings["draft_n_accepted"] <= timings["draft_n"]


def test_an_empty_body_is_a_completion_of_nothing(engine: EngineProcess) -> None:
    assert engine.post("/infill", n_predict=1)["tokens_evaluated"] == 3


hostile = st.lists(st.text(max_size=8) | st.sampled_from([*CONTROL_STRINGS, "\n"]), max_size=4)


@pytest.mark.long
@examples(sample=20, full=200)
@given(texts=st.lists(hostile.map("".join), min_size=7, max_size=7))
def test_no_text_field_can_hold_a_control_token(
    engine: EngineProcess, tokenizer: Tokenizer, texts: list[str]
) -> None:
    """The prompt has the tokens of the plain texts and of the format, and no other."""
    prefix, prompt, suffix, path, repo, extra_path, extra = texts
    answer = engine.post(
        "/infill",
        input_prefix=prefix,
        prompt=prompt,
        input_suffix=suffix,
        filename="f" + path,
        repo_name="r" + repo,
        input_extra=[{"filename": "e" + extra_path, "text": extra + "\n"}],
        n_predict=0,
    )
    plain = ["f" + path + "\n", "r" + repo + "\n", "e" + extra_path + "\n"]
    plain += [extra + "\n", prefix + prompt, suffix]
    expected = sum(len(tokenizer.encode_plain(text)) for text in plain) + 6
    assert answer["tokens_evaluated"] == expected


def test_a_document_beyond_the_context_is_cut_and_completed(engine: EngineProcess) -> None:
    answer = engine.post(
        "/infill", input_prefix="x = 1\n" * 50_000, input_suffix="y = 2\n" * 50_000, n_predict=4
    )
    assert answer["truncated"] is True
    assert CONTEXT_LENGTH // 2 < answer["tokens_evaluated"] <= CONTEXT_LENGTH - 4


@pytest.mark.parametrize("n_predict", [-1, 100_000])
def test_any_number_of_tokens_may_be_asked_for(engine: EngineProcess, n_predict: int) -> None:
    """The prompt keeps its share of the context; what is left is generated at most."""
    answer = engine.post("/infill", input_prefix="x = 1\n" * 5000, n_predict=n_predict)
    assert answer["tokens_evaluated"] > CONTEXT_LENGTH // 2
    assert answer["tokens_evaluated"] + answer["tokens_predicted"] <= CONTEXT_LENGTH


@pytest.mark.long
@examples(sample=10, full=60)
@given(
    seed=st.integers(0, 1000),
    stop=st.lists(st.sampled_from(["", "e", "\n", " t", "tok"]), max_size=3),
)
def test_a_stream_says_what_the_answer_in_one_piece_says(
    engine: EngineProcess, seed: int, stop: list[str]
) -> None:
    body: dict[str, Any] = {
        "input_prefix": "def f",
        "temperature": 1.0,
        "seed": seed,
        "stop": stop,
        "n_predict": 20,
    }
    whole = engine.post("/infill", **body)
    *parts, last = parsed(engine.events("/infill", **body))
    assert all(set(part) == {"content", "stop"} and part["stop"] is False for part in parts)
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert last["stop"] is True
    assert last["content"] == ""
    for name in ("stop_type", "stopping_word", "tokens_predicted", "tokens_evaluated"):
        assert last[name] == whole[name]
    if whole["stop_type"] == "word":
        assert whole["stopping_word"] in stop
        assert whole["stopping_word"] != ""


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input_prefix": 1}, "input_prefix"),
        ({"input_suffix": ["a"]}, "input_suffix"),
        ({"input_extra": {"filename": "a", "text": "b"}}, "input_extra"),
        ({"input_extra": [{"filename": "a"}]}, "input_extra.0.text"),
        ({"n_predict": 1.5}, "n_predict"),
        ({"n_predict": True}, "n_predict"),
        ({"temperature": "hot"}, "temperature"),
        ({"seed": -2}, "seed"),
        ({"response_fields": "content"}, "response_fields"),
    ],
    ids=str,
)
def test_a_wrong_type_names_the_field(
    engine: EngineProcess, body: dict[str, Any], field: str
) -> None:
    answer = engine.client.post("/infill", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"{field}: ")


@pytest.mark.long
@examples(sample=20, full=200)
@given(text=st.text())
def test_tokens_of_a_text_give_it_back(engine: EngineProcess, text: str) -> None:
    tokens = engine.post("/tokenize", content=text)["tokens"]
    content = engine.post("/detokenize", tokens=tokens)["content"]
    assert content == unicodedata.normalize("NFC", text)


def test_special_tokens_are_parsed_only_when_asked_for(
    engine: EngineProcess, tokenizer: Tokenizer
) -> None:
    text = "<|fim_prefix|>"
    plain = engine.post("/tokenize", content=text)["tokens"]
    assert not tokenizer.control_ids & set(plain)
    parsed_tokens = engine.post("/tokenize", content=text, parse_special=True)["tokens"]
    assert parsed_tokens == [tokenizer.control_id(text)]
    assert engine.post("/detokenize", tokens=parsed_tokens)["content"] == text


def test_pieces_are_text_or_bytes(engine: EngineProcess) -> None:
    tokens = engine.post("/tokenize", content="a\U0001f642", with_pieces=True)["tokens"]
    assert [token["piece"] for token in tokens] == ["a", [0xF0], [0x9F], [0x99], [0x82]]


def test_a_checkpoint_may_complete_with_the_suffix_first(
    model_folder: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"fim_order": "suffix_first"}))
    parts = [
        tokenizer.control_id("<|fim_suffix|>"),
        *tokenizer.encode_plain(")\n"),
        tokenizer.control_id("<|fim_prefix|>"),
        *tokenizer.encode_plain("print("),
        tokenizer.control_id("<|fim_middle|>"),
    ]
    with forked_engine(folder) as engine:
        infill = engine.post("/infill", input_prefix="print(", input_suffix=")\n", n_predict=8)
        by_hand, by_suffix = (
            engine.post("/v1/completions", **prompt, max_tokens=8, temperature=0)
            for prompt in ({"prompt": parts}, {"prompt": "print(", "suffix": ")\n"})
        )
    assert infill["tokens_evaluated"] == len(parts)
    assert infill["content"] == by_hand["choices"][0]["text"] == by_suffix["choices"][0]["text"]
