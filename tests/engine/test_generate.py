"""One completion on a real model: the same by every route, and stopped within a step."""

import itertools
from collections.abc import Generator
from typing import TypeVar

import pytest
import torch
from engine_support import CONTEXT_LENGTH, VOCAB_SIZE, answer_of, finish, request_of
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.fim import ContextFile, InfillText, infill_prompt
from qcn_inference.generate import Loaded
from qcn_inference.grid import BLOCK, TYPED_BLOCK, Grid
from qcn_inference.model import Model
from qcn_inference.request import Chunk, GenerationRequest, Prompt, RequestError, SamplingParams
from qcn_inference.scheduler import Priority, Scheduler
from qcn_inference.state import State
from qcn_inference.state_cache import StateCache
from sampling import examples
from torch import Tensor

T = TypeVar("T")

IDS = list(range(20, 60))
LONG = IDS * 16  # more than a block


def infill(loaded: Loaded, prefix: str) -> GenerationRequest:
    text = InfillText(
        prefix, "\n    return x\n", "a.py", "r", (ContextFile("b.py", "import c\n" * 9),)
    )
    prompt = infill_prompt(loaded.tokenizer, text, CONTEXT_LENGTH - 64)
    return request_of(list(prompt.ids), keep=prompt.keep)


def test_a_keystroke_reads_a_block_the_line_and_the_suffix_again(loaded: Loaded) -> None:
    before = "def f(x):\n    y = 1\n" * 20
    _, first = answer_of(loaded.generate, infill(loaded, before + "    x"))
    _, second = answer_of(loaded.generate, infill(loaded, before + "    x = y"))
    assert first.cached_tokens == 0
    changed = len(loaded.tokenizer.encode_plain("    x = y" + "\n    return x\n"))
    read = second.prompt_tokens - second.cached_tokens
    assert changed < read <= changed + TYPED_BLOCK + 2  # and two control tokens
    assert second.cached_tokens > 200


def test_the_first_character_of_a_line_reads_no_line_above_it_again(loaded: Loaded) -> None:
    before = "def f(x):\n    y = 1\n" * 20
    answer_of(loaded.generate, infill(loaded, before))
    _, second = answer_of(loaded.generate, infill(loaded, before + "x"))
    changed = len(loaded.tokenizer.encode_plain("x" + "\n    return x\n"))
    read = second.prompt_tokens - second.cached_tokens
    assert changed < read <= changed + TYPED_BLOCK + 2  # and two control tokens


@pytest.mark.long
@examples(sample=15, full=60)
@given(
    pieces=st.lists(
        st.sampled_from(["x", " = ", "\n", "    y", "é", "\n\n", "(1)"]), min_size=2, max_size=8
    )
)
def test_what_is_cached_changes_no_answer(loaded: Loaded, pieces: list[str]) -> None:
    """Typing piece by piece: each prompt once after the others, and once from nothing."""
    for n in range(1, len(pieces) + 1):
        request = infill(loaded, "".join(pieces[:n]))
        typed = answer_of(loaded.generate, request)[0]
        alone = Loaded(loaded.model, loaded.tokenizer, empty_cache(loaded))
        assert typed == answer_of(alone.generate, request)[0]


def empty_cache(loaded: Loaded) -> StateCache:
    return StateCache(loaded.model.config, Grid(loaded.tokenizer), 0)


def test_a_prompt_may_be_kept_out_of_the_cache(loaded: Loaded) -> None:
    request = request_of(LONG, keep=(BLOCK,), cache_prompt=False)
    answer_of(loaded.generate, request)
    assert len(loaded.cache) == 0


def test_reading_only_fills_the_cache(loaded: Loaded) -> None:
    text, finished = answer_of(loaded.generate, request_of(LONG, max_tokens=0, keep=(BLOCK + 9,)))
    assert (text, finished.reason, finished.completion_tokens) == ("", "limit", 0)
    assert answer_of(loaded.generate, request_of(LONG, max_tokens=0))[1].cached_tokens == BLOCK


def test_jobs_that_take_turns_answer_as_each_alone(loaded: Loaded) -> None:
    requests = [
        request_of([*IDS[n:], n], sampling=SamplingParams(1.0, seed=n), keep=(4,)) for n in range(3)
    ]
    alone = [answer_of(loaded.generate, request)[0] for request in requests]
    scheduler = Scheduler()
    chunks: list[list[Chunk]] = [[] for _ in requests]
    with torch.inference_mode():
        for n, priority in enumerate((Priority.REFRESH, Priority.CHAT, Priority.COMPLETION)):
            scheduler.submit(loaded.generate(requests[n], chunks[n].append), priority=priority)
            for _ in range(n + 3):  # into the middle of a prefill, or of the decoding
                scheduler.step()
        while scheduler.step():
            pass
    assert ["".join(chunk.text for chunk in part) for part in chunks] == alone


def steps_of(loaded: Loaded, request: GenerationRequest) -> int:
    return sum(1 for _ in loaded.generate(request, lambda _: None))


def test_every_layer_and_every_token_is_a_step(loaded: Loaded) -> None:
    """So a completion that is dropped stops within one layer, or one token."""
    layers = len(loaded.model.config.layer_types)
    read = steps_of(loaded, request_of(IDS, max_tokens=1))
    assert read >= layers
    more = steps_of(loaded, request_of(IDS, max_tokens=9, sampling=SamplingParams(1.0, seed=3)))
    assert more == read + 8


def test_a_completion_begins_within_one_layer_of_a_refresh(loaded: Loaded) -> None:
    """Counted in steps: a refresh makes one for each layer of each block, and has none after it."""
    layers = len(loaded.model.config.layer_types)
    order: list[str] = []

    def noted(name: str, steps: Generator[None, None, T]) -> Generator[None, None, T]:
        while True:
            order.append(name)
            try:
                next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            yield

    scheduler = Scheduler()
    read = loaded.refresh([20] * (2 * BLOCK), [])
    refresh = scheduler.submit(noted("refresh", read), priority=Priority.REFRESH)
    for _ in range(layers // 2):  # in the middle of a block
        scheduler.step()
    asked = loaded.generate(request_of(IDS), lambda _: None)
    completion = scheduler.submit(noted("completion", asked))
    while not completion.done():
        scheduler.step()
    assert order[: layers // 2] == ["refresh"] * (layers // 2)
    assert set(order[layers // 2 :]) == {"completion"}
    while scheduler.step():
        pass
    assert refresh.result(0).computed == 2 * BLOCK
    assert order.count("refresh") > 2 * layers


def test_a_dropped_completion_reads_and_decodes_nothing_more(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    original = type(loaded.model).decode

    def counting(model: object, token: int, state: object) -> torch.Tensor:
        decoded.append(token)
        return original(model, token, state)  # type: ignore[arg-type]  # the method, unbound

    monkeypatch.setattr(type(loaded.model), "decode", counting)
    scheduler = Scheduler()
    request = request_of(IDS, max_tokens=100, sampling=SamplingParams(1.0, seed=3))
    future = scheduler.submit(loaded.generate(request, lambda _: None))
    while len(decoded) < 3:
        scheduler.step()
    future.cancel()
    assert not scheduler.step()
    assert len(decoded) == 3


def test_a_completion_ends_at_the_context(loaded: Loaded) -> None:
    ids = [20] * (CONTEXT_LENGTH - 3)
    sampling = SamplingParams(1.0, seed=1)
    _, finished = answer_of(loaded.generate, request_of(ids, max_tokens=50, sampling=sampling))
    assert finished.reason == "limit"
    assert finished.completion_tokens == 3


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([], "holds no token"),
        ([VOCAB_SIZE], f"outside 0 to {VOCAB_SIZE - 1}"),
        ([20] * (CONTEXT_LENGTH + 1), f"{CONTEXT_LENGTH + 1} tokens, the context {CONTEXT_LENGTH}"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(
    loaded: Loaded, ids: list[int], problem: str
) -> None:
    with pytest.raises(RequestError, match=problem):
        finish(loaded.generate(request_of(ids), lambda _: None))


def test_generation_ends_on_each_stop_token(loaded: Loaded) -> None:
    """A sampler that would choose the stop token next: the text ends before it."""
    stop_ids = loaded.stop_ids
    names = {loaded.tokenizer.token_label(token) for token in stop_ids}
    assert {"<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"} < names
    assert {"<|repo_name|>", "<|file_sep|>", "<|endoftext|>", "<|im_end|>"} < names
    assert set(loaded.model.config.eos_token_ids) <= stop_ids
    sampling = [SamplingParams(3.0, seed=seed) for seed in range(30)]
    ends = [
        answer_of(loaded.generate, request_of(IDS[:3], max_tokens=30, sampling=params))
        for params in sampling
    ]
    assert {finished.reason for _, finished in ends} == {"eos", "limit"}
    for text, finished in ends:
        assert finished.completion_tokens <= 30
        assert not any(name in text for name in names)


def test_a_time_limit_ends_at_a_complete_line(loaded: Loaded) -> None:
    """The limit has passed already: the text ends with the token that holds a line break."""
    request = request_of(
        IDS, max_tokens=300, sampling=SamplingParams(1.0, seed=5), max_predict_seconds=-1.0
    )
    text, finished = answer_of(loaded.generate, request)
    assert finished.reason == "limit"
    assert finished.completion_tokens < 400
    assert text.count("\n") >= 1
    last = text.rindex("\n")
    assert "\n" not in text[:last].rstrip("\n")


def test_log_probabilities_come_with_every_token(loaded: Loaded) -> None:
    chunks: list[Chunk] = []
    request = request_of(IDS, max_tokens=6, logprobs=2, echo=True)
    finished = finish(loaded.generate(request, chunks.append))
    tokens = list(itertools.chain.from_iterable(chunk.tokens for chunk in chunks))
    assert [token.token for token in tokens[: len(IDS)]] == IDS
    assert len(tokens) == len(IDS) + finished.completion_tokens
    assert all(len(token.top) == 2 for token in tokens[1:])


def test_the_prompt_is_made_on_the_jobs_first_step(loaded: Loaded) -> None:
    """Not when it is submitted: the event loop is no place to tokenise a long text."""
    made = []

    def prompt() -> Prompt:
        made.append(True)
        return Prompt(IDS)

    steps = loaded.generate(
        GenerationRequest(prompt, 1, SamplingParams(temperature=0)), lambda _: None
    )
    assert not made
    next(steps)
    assert made


@pytest.mark.parametrize("sampling", [SamplingParams(0.0), SamplingParams(1.5, seed=3)], ids=str)
def test_steps_that_are_queued_ahead_change_no_answer(
    sampling: SamplingParams, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the step behind a token is queued before anybody has seen the token."""
    prompt = list(range(40, 70))
    requests = [request_of(prompt[:end], max_tokens=12, sampling=sampling) for end in (5, 17, 30)]
    want = [answer_of(loaded.generate, request)[0] for request in requests]
    behind: list[object] = []
    decode = loaded.model.decode

    def noted(token: int | Tensor, state: State) -> Tensor:
        behind.append(token)
        return decode(token, state)

    monkeypatch.setattr(Model, "runs_ahead", True)
    monkeypatch.setattr(loaded.model, "decode", noted)
    assert [answer_of(loaded.generate, request)[0] for request in requests] == want
    assert any(isinstance(token, Tensor) for token in behind)
