"""Drafts change how fast an answer comes, and nothing else.

Models are in fp32 here, so that verified and decoded logits agree within `TIE`: where the two best
tokens of greedy decoding are nearer than that, either is right, and what follows may differ. Seeds
are fixed.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_support import finish, request_of
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.config import ModelConfig
from qcn_inference.generate import Loaded
from qcn_inference.grid import BLOCK, Grid
from qcn_inference.lookup import BlockIndexes
from qcn_inference.model import Model
from qcn_inference.request import Chunk, Finished, GenerationRequest, SamplingParams, TokenLogprobs
from qcn_inference.sampling import Sampler
from qcn_inference.scheduler import Scheduler
from qcn_inference.speculation import Acceptance, Speculation
from qcn_inference.state_cache import StateCache
from qcn_inference.step_cost import ROWS, StepCost
from sampling import count, examples
from torch import Tensor

TIE = 1e-3

GREEDY = SamplingParams(temperature=0)
REPEATING = [*range(20, 60), *range(20, 50)]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts of full length wherever there is anything to draft: as many are wrong as can be."""
    monkeypatch.setattr(StepCost, "verifying", lambda *_: 0.01)


def plain(loaded: Loaded) -> Loaded:
    """The same model with an empty cache, which decodes token by token."""
    cache = StateCache(loaded.model.config, Grid(loaded.tokenizer), 64 * 2**20)
    return Loaded(loaded.model, loaded.tokenizer, cache, indexes=NothingProposed())


class NothingProposed(BlockIndexes):
    """Indexes in which no token may be proposed."""

    def lookup(self, pieces: Any, **how: Any) -> Any:
        return super().lookup(pieces, **{**how, "control": range(2**20)})


@dataclass
class Answer:
    """Everything that a client could see of a completion."""

    chunks: list[Chunk]
    finished: Finished

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def tokens(self) -> list[TokenLogprobs]:
        return list(itertools.chain.from_iterable(chunk.tokens for chunk in self.chunks))


def answer(loaded: Loaded, request: GenerationRequest) -> Answer:
    chunks: list[Chunk] = []
    return Answer(chunks, finish(loaded.generate(request, chunks.append)))


def is_tie(token: TokenLogprobs) -> bool:
    (_, first), (_, second) = token.top[:2]
    return first - second < TIE


def assert_same(drafted: Answer, stepped: Answer, *, greedy: bool) -> None:
    """Both answers agree in all that a client sees, up to the first tie of greedy decoding."""
    for mine, theirs in zip(drafted.tokens, stepped.tokens, strict=False):
        if mine.token != theirs.token and greedy and is_tie(theirs):
            return
        assert mine.token == theirs.token
        assert mine.logprob == pytest.approx(theirs.logprob, abs=TIE)
        assert [value for _, value in mine.top] == pytest.approx(
            [value for _, value in theirs.top], abs=TIE
        )
    shown = [(chunk.text, len(chunk.tokens)) for chunk in drafted.chunks]
    assert shown == [(chunk.text, len(chunk.tokens)) for chunk in stepped.chunks]
    same = ("reason", "stopping_word", "prompt_tokens", "completion_tokens", "truncated")
    for name in same:
        assert getattr(drafted.finished, name) == getattr(stepped.finished, name)


SAMPLINGS = st.sampled_from(
    [
        GREEDY,
        SamplingParams(temperature=0.3, seed=1),
        SamplingParams(temperature=1.0, top_k=5, seed=2),
        SamplingParams(temperature=0.8, top_p=0.5, seed=3),
        SamplingParams(temperature=1.0, seed=4),
    ]
)
# Parts of prompts: runs that repeat, and others that do not.
PARTS = st.lists(
    st.sampled_from([[20, 21, 22, 23], [30, 31, 32], [20, 21, 22, 40], [50], [21, 22, 23, 24]]),
    min_size=1,
    max_size=12,
)


@pytest.mark.long
@pytest.mark.usefixtures("eager")
@examples(sample=60, full=300)
@given(
    parts=PARTS,
    sampling=SAMPLINGS,
    max_tokens=st.integers(0, 40),
    stop=st.lists(st.sampled_from(["a", "e", "th", "\n", "zz"]), max_size=2).map(tuple),
    out_of_time=st.booleans(),
)
def test_an_answer_is_the_same_with_and_without_drafts(
    loaded: Loaded,
    parts: list[list[int]],
    sampling: SamplingParams,
    max_tokens: int,
    stop: tuple[str, ...],
    out_of_time: bool,
) -> None:
    """Text, chunks, log-probabilities, stop strings and ids, limits: whatever is asked for."""
    request = request_of(
        [token for part in parts for token in part],
        max_tokens=max_tokens,
        sampling=sampling,
        stop=stop,
        logprobs=2,
        max_predict_seconds=-1.0 if out_of_time else None,
    )
    drafted = answer(loaded, request)
    assert_same(drafted, answer(plain(loaded), request), greedy=sampling == GREEDY)
    assert 0 <= drafted.finished.accepted_tokens <= drafted.finished.drafted_tokens
    assert drafted.finished.accepted_tokens <= drafted.finished.completion_tokens


@pytest.mark.usefixtures("eager")
def test_a_model_that_repeats_itself_has_its_drafts_accepted(loaded: Loaded) -> None:
    """Greedy decoding of random weights runs into a circle soon: what it repeats is drafted."""
    request = request_of(REPEATING, max_tokens=200, logprobs=2)
    drafted = answer(loaded, request)
    assert_same(drafted, answer(plain(loaded), request), greedy=True)
    assert drafted.finished.accepted_tokens > 50


def test_what_nobody_drafts_costs_no_verification(loaded: Loaded) -> None:
    finished = answer(plain(loaded), request_of(REPEATING, max_tokens=30)).finished
    assert (finished.drafted_tokens, finished.accepted_tokens) == (0, 0)


@pytest.mark.long
@pytest.mark.usefixtures("eager")
@examples(sample=8, full=80)
@given(parts=st.lists(PARTS, min_size=2, max_size=3), sampling=SAMPLINGS)
def test_what_is_left_behind_is_exact(
    loaded: Loaded, parts: list[list[list[int]]], sampling: SamplingParams
) -> None:
    """Prompts that grow by what was generated: from the cache as from nothing, to the last bit."""
    ids: list[int] = []
    for part in parts:
        ids += [token for run in part for token in run]
        request = request_of(
            list(ids), max_tokens=20, sampling=sampling, logprobs=2, keep=(len(ids) - 1,)
        )
        cached = answer(loaded, request)
        cache = StateCache(loaded.model.config, Grid(loaded.tokenizer), 64 * 2**20)
        fresh = answer(Loaded(loaded.model, loaded.tokenizer, cache), request)
        assert cached.chunks == fresh.chunks
        assert cached.finished.drafted_tokens == fresh.finished.drafted_tokens
        loaded.cache.check_integrity()
        ids += [token.token for token in cached.tokens]


@pytest.mark.usefixtures("eager")
def test_the_same_seed_gives_the_same_bits(loaded: Loaded) -> None:
    """Nothing that decides about drafts depends on time or on requests before."""
    params = SamplingParams(temperature=0.5, seed=7)
    request = request_of(REPEATING, max_tokens=60, sampling=params, logprobs=3)
    assert answer(loaded, request).chunks == answer(loaded, request).chunks


@pytest.mark.usefixtures("eager")
def test_a_dropped_completion_runs_no_step_more(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(Model, name)

        def call(*arguments: Any) -> Any:
            steps.append(name)
            return original(*arguments)

        return call

    monkeypatch.setattr(Model, "decode", counted("decode"))
    monkeypatch.setattr(Model, "verify", counted("verify"))
    scheduler = Scheduler()
    future = scheduler.submit(
        loaded.generate(request_of(REPEATING, max_tokens=500), lambda _: None)
    )
    while steps.count("verify") < 3:
        assert scheduler.step()
    done = len(steps)
    future.cancel()
    assert not scheduler.step()
    assert len(steps) == done


def test_what_a_prompt_says_is_superseded_is_kept_from_the_lookup(loaded: Loaded) -> None:
    asked: list[Any] = []

    class Noted(BlockIndexes):
        def lookup(self, pieces: Any, **how: Any) -> Any:
            asked.append(how["superseded"])
            return super().lookup(pieces, **how)

    prompt = replace(request_of(REPEATING).prompt(), superseded=((3, 9), (20, 40)))
    request = replace(request_of(REPEATING, max_tokens=2), prompt=lambda: prompt)
    answer(replace(loaded, indexes=Noted()), request)
    assert asked == [prompt.superseded]


def test_a_refresh_leaves_nothing_to_index_and_forgetting_leaves_no_index(loaded: Loaded) -> None:
    ids = [20 + n % 30 for n in range(BLOCK + 100)]
    finish(loaded.refresh(ids, ()))
    assert len(loaded.indexes) == 2
    answer(loaded, request_of([*ids, 7], max_tokens=2))
    assert len(loaded.indexes) == 3  # the second block has grown
    finish(loaded.forget(ids))
    assert len(loaded.indexes) == 0


def test_a_prompt_that_is_to_leave_nothing_leaves_no_index(loaded: Loaded) -> None:
    answer(loaded, request_of(REPEATING, cache_prompt=False))
    assert len(loaded.indexes) == 0


# The distribution: a model of a few tokens, whose every answer can be enumerated.

TOKENS, LENGTH = 3, 5


class Scripted:
    """A model whose logits are drawn for each text; it verifies as it decodes."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.step_cost = StepCost.of(config)
        self.verified = 0

    def new_drafter(self) -> None:
        """It has no head."""

    def logits(self, text: tuple[int, ...]) -> Tensor:
        seed = hash(text) % 2**31  # of integers, which Python hashes alike in every process
        return 1.5 * torch.randn(TOKENS, generator=torch.Generator().manual_seed(seed))

    def decode(self, token: int, state: Any) -> Tensor:
        state.text += (token,)
        return self.logits(state.text)

    def verify(self, ids: list[int], state: Any) -> Any:
        self.verified += 1
        text = state.text
        rows = [self.logits((*text, *ids[: n + 1])) for n in range(len(ids))]

        def commit(tokens: int) -> None:
            state.text = (*text, *ids[:tokens])

        return SimpleNamespace(logits=torch.stack(rows), commit=commit)


def probabilities(logits: Tensor, params: SamplingParams) -> list[float]:
    """The definition: temperature, then the `top_k` best, then the smallest set of mass `top_p`."""
    scaled = torch.softmax(logits / params.temperature, -1)
    order = scaled.argsort(descending=True).tolist()[: params.top_k or None]
    mass = sum(float(scaled[token]) for token in order)
    kept: dict[int, float] = {}
    before = 0.0
    for token in order:
        if not kept or before < params.top_p:
            kept[token] = float(scaled[token]) / mass
        before += float(scaled[token]) / mass
    total = sum(kept.values())
    return [kept.get(token, 0.0) / total for token in range(TOKENS)]


def exact(
    model: Scripted, prompt: tuple[int, ...], params: SamplingParams
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every answer of LENGTH tokens with its probability."""
    for text in itertools.product(range(TOKENS), repeat=LENGTH):
        chance = 1.0
        for n, token in enumerate(text):
            chance *= probabilities(model.logits((*prompt, *text[:n])), params)[token]
        yield text, chance


@pytest.mark.long
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=0.7, top_k=3, seed=2),
        SamplingParams(temperature=1.3, top_p=0.8, seed=3),
    ],
    ids=str,
)
def test_answers_are_drawn_from_the_models_distribution(
    loaded: Loaded, params: SamplingParams
) -> None:
    """Chi-square over all 243 answers, behind a prompt in which every three tokens have stood.

    The bound is passed by chance once in a million; the seed is fixed.
    """
    model = Scripted(loaded.model.config)
    every = itertools.product(range(TOKENS), repeat=4)
    prompt = tuple(itertools.chain.from_iterable(every))
    sampler, draws = Sampler(params), count(sample=2000, full=12_000)
    indexes = BlockIndexes()  # of the same prompt each time
    found: Counter[tuple[int, ...]] = Counter()
    accepted = 0
    for _ in range(draws):
        speculation = speculation_on(model, prompt, indexes)
        logits, text = model.logits(prompt), list[int]()
        for left in reversed(range(LENGTH)):
            text.append(sampler.choose(logits))
            if left:
                logits = speculation.after(text[-1], left)
        found[tuple(text)] += 1
        accepted += speculation.accepted
    chances = dict(exact(model, prompt, params))
    assert not any(found[text] for text, chance in chances.items() if chance == 0)
    assert model.verified > draws
    assert accepted > draws / 4
    # Answers of which fewer than five are expected are taken together.
    often = {text: chance * draws for text, chance in chances.items() if chance * draws >= 5}
    rest = draws - sum(often.values())
    pairs = [(found[text], expected) for text, expected in often.items()]
    if rest >= 5:
        pairs.append((draws - sum(found[text] for text in often), rest))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in pairs)
    free = len(pairs) - 1
    # Wilson and Hilferty's approximation; 4.75 standard deviations.
    bound = free * (1 - 2 / (9 * free) + 4.75 * math.sqrt(2 / (9 * free))) ** 3
    assert statistic < bound


def speculation_on(model: Scripted, prompt: tuple[int, ...], indexes: BlockIndexes) -> Speculation:
    raw = torch.tensor(prompt, dtype=torch.int32).numpy().tobytes()
    lookup = finish(indexes.lookup([raw]))
    state: Any = SimpleNamespace(text=prompt, position=len(prompt))
    return Speculation(model, state, lookup)  # type: ignore[arg-type]  # as far as it is used


# How long drafts are.


def config_of(loaded: Loaded, **changed: Any) -> ModelConfig:
    return replace(loaded.model.config, **changed)


def test_proposals_that_never_come_true_end_drafts_and_those_that_do_bring_them_back() -> None:
    acceptance = Acceptance()
    for _ in range(200):
        acceptance.count(5, came_true=False)
    assert acceptance.expected_tokens(5, 16) < 1.05
    for _ in range(200):
        acceptance.count(5, came_true=True)
        acceptance.count(32, came_true=True)
    assert acceptance.expected_tokens(5, 4) > 3


def test_of_short_and_long_matches_is_learnt_apart() -> None:
    acceptance = Acceptance()
    before = acceptance.of(32)
    for _ in range(100):
        acceptance.count(3, came_true=False)
    assert acceptance.of(3) < 0.01
    assert acceptance.of(32) == before


def test_more_rows_cost_more_and_less_so_behind_a_long_text(loaded: Loaded) -> None:
    cost = StepCost.of(config_of(loaded, num_experts=512, num_experts_per_tok=10))
    short, long = ([cost.verifying(rows, at) for rows in ROWS] for at in (100, 200_000))
    assert short == sorted(short)
    assert all(behind < ahead for behind, ahead in zip(long, short, strict=True))


def test_measured_costs_take_the_place_of_those_reckoned(loaded: Loaded) -> None:
    """What varies by less than an eighth changes nothing; behind a long text rows weigh less."""
    reckoned = StepCost.of(config_of(loaded))
    cost = reckoned.measured_as({2: 1.24, 8: 1.77})
    assert cost == reckoned.measured_as({2: 1.27, 8: 1.73})
    assert [cost.verifying(rows, 0) for rows in (2, 8)] == [1.25, 1.75]
    assert 1 < cost.verifying(8, 100_000) < cost.verifying(8, 1000) < 1.75
    assert cost.verifying(4, 100) == reckoned.verifying(4, 100)


def test_a_step_costs_what_it_reads(loaded: Loaded) -> None:
    """All experts are read once the rows are many; one row reads those that it chose."""
    cost = StepCost.of(config_of(loaded, num_experts=4, num_experts_per_tok=1))
    assert cost._bytes(1, 0) == pytest.approx(cost.weights + cost.layers * cost.expert)
    assert cost._bytes(1000, 0) == pytest.approx(cost.weights + 4 * cost.layers * cost.expert)
    assert cost._bytes(1, 10) == pytest.approx(cost._bytes(1, 0) + 10 * cost.past)


def test_drafts_are_as_long_as_is_worth_while(loaded: Loaded) -> None:
    """A text that repeats itself is drafted at full length, one that misleads less and less."""
    drafts: dict[str, list[int]] = {"repeats": [], "misleads": []}
    for name, lengths in drafts.items():
        model = Scripted(config_of(loaded, num_experts=0, num_experts_per_tok=0))
        prompt = tuple(itertools.chain.from_iterable((1, 2, 3, n % 7 + 4) for n in range(50)))
        speculation = speculation_on(model, (*prompt, 1, 2), BlockIndexes())
        for n in range(60):
            period = (3, n % 7 + 4, 1, 2) if name == "repeats" else (3, 19 + n, 1, 2)
            for token in period:
                before = speculation.drafted
                speculation.after(token, 100)
                lengths.append(speculation.drafted - before)
    assert max(drafts["repeats"]) == ROWS[-1] - 1
    assert sum(drafts["misleads"][-40:]) < sum(drafts["misleads"][:40])
