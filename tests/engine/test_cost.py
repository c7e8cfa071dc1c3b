"""What a change costs: the tokens that the engine computes, however long the context is.

Counted by the engine, over HTTP, at 4k, 16k and 64k tokens. The bound is that of ARCHITECTURE.md's
`cheap-refresh`: the changed text, the entries that it rolls back, one block, and the prompt's own.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from engine_support import VOCAB_SIZE, EngineClient, forked_engine, write_tokenizer
from qcn_inference.grid import BLOCK, TYPED_BLOCK
from qcn_inference.state_cache import SPACING
from random_checkpoints import draw_config, draw_tensors, write_checkpoint
from sampling import FULL

Layout = list[tuple[str, str, str]]  # path, text, zone

SIZES = [4_096, 16_384, *([65_536] if FULL else [])]
FILE_LINES = 60
# As small as the architecture allows: a long text is read in seconds.
TINY: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "max_position_embeddings": 131_072,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "partial_rotary_factor": 0.25,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 1,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "eos_token_id": VOCAB_SIZE - 1,
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineClient]:
    """A tiny model that reads 128k tokens, and completes with the suffix first."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = {key: value for key, value in draw_config(1).items() if "interval" not in key} | TINY
    write_tokenizer(folder)
    write_checkpoint(folder, config, draw_tensors(config, 1, deviation=0.05))
    (folder / "generation_config.json").write_text(json.dumps({"fim_order": "suffix_first"}))
    with forked_engine(folder) as engine:
        yield engine


def file(number: int, *, changed: str = "") -> str:
    lines = "".join(f"v{number}_{n} = {n}\n" for n in range(FILE_LINES))
    return changed + lines


def put(engine: EngineClient, layout: Layout) -> dict[str, Any]:
    segments = [
        {
            "hash": hashlib.sha256(f"{path}\0{text}".encode()).hexdigest(),
            "path": path,
            "text": text,
            "zone": zone,
        }
        for path, text, zone in layout
    ]
    answer = engine.client.put(
        "/v1/contexts/shop", json={"repo": "shop", "segments": segments}, timeout=None
    )
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]  # any JSON


def base_of(engine: EngineClient, tokens: int) -> Layout:
    """A base of at least that many tokens, which the engine has read."""
    one = engine.post("/tokenize", content=file(100), count_only=True)["count"]
    base = [(f"{n}.py", file(n), "base") for n in range(100, 101 + tokens // one)]
    assert tokens <= put(engine, base)["tokens"] < 1.5 * tokens
    return base


def own(answer: dict[str, Any], entries: int) -> int:
    """The tokens of a layout's last entries."""
    return sum(segment["tokens"] for segment in answer["segments"][-entries:])


@pytest.mark.long
@pytest.mark.parametrize("tokens", SIZES)
def test_a_change_costs_what_it_weighs(engine: EngineClient, tokens: int) -> None:
    base = base_of(engine, tokens)
    costs = {}

    line = [*base, ("101.py", "original:\nv101_3 = 3\nupdated:\nv101_3 = 4\n", "overlay")]
    answer = put(engine, line)
    costs["a line"] = answer["computed"], own(answer, 1)

    other = [*line, ("102.py", file(102, changed="x = 1\n" * 200), "overlay")]
    answer = put(engine, other)
    costs["a large insertion"] = answer["computed"], own(answer, 1)

    again = [
        *base,
        other[-1],
        ("101.py", "original:\nv101_3 = 3\nupdated:\nv101_3 = 5\n", "overlay"),
    ]
    answer = put(engine, again)
    costs["the line again, with what stood behind it"] = answer["computed"], own(answer, 2)

    answer = put(engine, [*again, ("new.py", file(1), "overlay")])
    costs["a new file"] = answer["computed"], own(answer, 1)

    answer = put(engine, [*again, ("103.py", "(deleted)\n", "overlay")])
    costs["a deletion instead"] = answer["computed"], own(answer, 1)

    for what, (computed, weight) in costs.items():
        assert weight <= computed <= weight + BLOCK, what


@pytest.mark.long
@pytest.mark.parametrize("tokens", SIZES)
def test_returning_to_a_branch_costs_nothing(engine: EngineClient, tokens: int) -> None:
    base = base_of(engine, tokens)
    middle = len(base) // 2
    branch = [*base[:middle], (base[middle][0], file(1), "base"), *base[middle + 1 :]]
    away = put(engine, branch)
    behind = sum(segment["tokens"] for segment in away["segments"][middle:])
    assert away["computed"] <= behind + SPACING + BLOCK
    assert put(engine, base)["computed"] == 0
    assert put(engine, branch)["computed"] == 0


@pytest.mark.long
@pytest.mark.parametrize("tokens", SIZES)
def test_typing_in_the_middle_of_a_long_file_costs_what_is_typed(
    engine: EngineClient, tokens: int
) -> None:
    """The suffix stands in front, so what is behind the cursor is not read again."""
    put(engine, base_of(engine, tokens))
    text = "".join(map(file, range(5)))
    for typed in ["", "    x", "    x =", "    x = v", "    x = v1_2", "    x = v1_2 + y"]:
        answer = engine.post(
            "/infill",
            input_prefix=text + typed,
            input_suffix="\n" + text,
            filename="long.py",
            context="shop",
            n_predict=1,
        )
        assert answer["context_tokens"] >= tokens
        if typed:
            line = engine.post("/tokenize", content=typed, count_only=True)["count"]
            assert answer["timings"]["prompt_n"] <= line + TYPED_BLOCK + 1


@pytest.mark.long
@pytest.mark.parametrize("tokens", SIZES)
def test_a_plain_prompt_that_begins_like_another_costs_the_rest(
    engine: EngineClient, tokens: int
) -> None:
    """Any client's, whatever comes after; and one that begins like a context."""
    base = base_of(engine, tokens)
    opening = "<|repo_name|>shop\n" + "".join(
        f"<|file_sep|>{path}\n{text}" for path, text, _ in base
    )
    for ending in ["x = v100_1", "y = v101_1 + 1", "z"]:
        prompt = f"{opening}<|file_sep|>{ending}"
        usage = engine.post("/v1/completions", prompt=prompt, max_tokens=1)["usage"]
        read = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        count = engine.post("/tokenize", content=ending, count_only=True)["count"]
        assert read <= 1 + count + BLOCK
