"""A GPU's memory that another program takes in the middle of an answer: what becomes of that.

Whatever is computed may be what is refused. So any one of torch's operations is, as an allocation
is refused on a GPU: before it has done anything.
"""

import itertools
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
import torch
from engine_support import VOCAB_SIZE, finish, request_of, write_model
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference import decoding
from qcn_inference.checkpoint import load_model
from qcn_inference.generate import Loaded
from qcn_inference.grid import Grid
from qcn_inference.host_copies import Arriving
from qcn_inference.request import Chunk, Finished, GenerationRequest, SamplingParams, TokenLogprobs
from qcn_inference.sampling import Sampler
from qcn_inference.state_cache import StateCache
from qcn_inference.step_cost import StepCost
from qcn_inference.tokenizer import Tokenizer
from sampling import examples
from torch.utils._python_dispatch import TorchDispatchMode

TIE = 1e-3
REPEATING = [*range(30, 60), *range(30, 50)]  # both the lookup and the head draft behind it
SAMPLING = {
    "greedy": SamplingParams(temperature=0),
    "sampled": SamplingParams(temperature=0.7, seed=3),
}
TOKENS = 20


class Refusing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts torch's operations, and refuses some by their numbers."""

    def __init__(self, *refused: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self._refused = refused

    def __torch_dispatch__(
        self, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        self.count += 1
        if self.count - 1 in self._refused:
            raise torch.OutOfMemoryError(f"CUDA out of memory, at {operation}")
        return operation(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A model with a head for drafts, in fp32."""
    folder = write_model(tmp_path_factory.mktemp("model"), head=True)
    model, tokenizer = load_model(folder, mtp=True), Tokenizer(folder, VOCAB_SIZE)
    return Loaded(model, tokenizer, StateCache(model.config, Grid(tokenizer), 0))


def with_empty_cache(loaded: Loaded) -> Loaded:
    cache = StateCache(loaded.model.config, Grid(loaded.tokenizer), 64 * 2**20)
    return Loaded(loaded.model, loaded.tokenizer, cache)


class Answer:
    """What a client sees of an answer while it is made."""

    def __init__(self, loaded: Loaded, request: GenerationRequest) -> None:
        self.chunks: list[Chunk] = []
        self.steps: Generator[None, None, Finished] = loaded.generate(request, self.chunks.append)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def tokens(self) -> list[TokenLogprobs]:
        return [token for chunk in self.chunks for token in chunk.tokens]


def assert_same(got: Answer, want: Answer) -> None:
    """Token by token, to where two were so near each other that rounding decides."""
    for mine, theirs in zip(got.tokens, want.tokens, strict=True):
        lead = theirs.top[0][1] - theirs.top[1][1]
        if mine.token != theirs.token and lead < TIE:
            return
        assert mine.token == theirs.token
    assert got.text == want.text


class Undisturbed:
    """An answer, and how many operations it takes."""

    ends: list[int]
    """How many of them are done when it begins, and after each of its steps."""

    def __init__(self, loaded: Loaded, sampling: SamplingParams) -> None:
        self.request = request_of(REPEATING, max_tokens=TOKENS, sampling=sampling, logprobs=2)
        self.answer = Answer(with_empty_cache(loaded), self.request)
        with Refusing() as counted:
            self.ends = [0, *(counted.count for _ in self.answer.steps), counted.count]


@pytest.fixture(scope="module", params=[True, False], ids=["drafts", "steps"])
def undisturbed(request: pytest.FixtureRequest, once: Loaded) -> Iterator[dict[str, Undisturbed]]:
    """Answers with drafts of full length at every step, or with none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepCost, "verifying", lambda *_: 0.01 if request.param else 1e9)
        patch.setattr(StepCost, "guessing", lambda *_: 0.0)
        yield {name: Undisturbed(once, sampling) for name, sampling in SAMPLING.items()}


def refused_once(steps: Generator[None, None, Finished], at: int, ends: list[int]) -> Finished:
    """Run an answer to its end, refused the operation of this number on its way.

    Only the step of that operation is watched: the others run in a third of the time.
    """
    before = bisect_right(ends, at) - 1
    for _ in range(before):
        next(steps)
    refusing = Refusing(at - ends[before])
    try:
        with refusing:
            next(steps)
    except StopIteration as end:
        finished: Finished = end.value
    else:
        finished = finish(steps)
    assert refusing.count > at - ends[before], "it was not reached"
    return finished


@pytest.mark.long
@examples(sample=30, full=150)
@given(at=st.floats(0, 1, exclude_max=True), sampling=st.sampled_from(sorted(SAMPLING)))
def test_whichever_allocation_is_refused_once_the_answer_is_the_same(
    once: Loaded, undisturbed: dict[str, Undisturbed], at: float, sampling: str
) -> None:
    """No token is lost, told twice, or drawn anew; in the prompt, in a draft, or between."""
    want = undisturbed[sampling]
    loaded = with_empty_cache(once)
    got = Answer(loaded, want.request)
    finished = refused_once(got.steps, int(at * want.ends[-1]), want.ends)
    assert_same(got, want.answer)
    assert finished.completion_tokens == TOKENS
    loaded.cache.check_integrity()


PLACES: dict[str, tuple[Any, str]] = {
    "drawn": (Sampler, "draw"),
    "on its way to the host": (Arriving, "wait"),
    "told with its log-probabilities": (decoding, "token_logprobs"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_token_that_was_drawn_and_not_told_is_drawn_again_by_the_same_number(
    once: Loaded, undisturbed: dict[str, Undisturbed], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory lacks just after: the request's seed stands for its whole answer."""
    want, calls = undisturbed["sampled"], itertools.count()
    whose, name = PLACES[place]
    original = getattr(whose, name)

    def then_refused(*args: Any) -> Any:
        done = original(*args)
        if next(calls) == TOKENS // 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return done

    monkeypatch.setattr(whose, name, then_refused)
    got = Answer(with_empty_cache(once), want.request)
    finish(got.steps)
    assert next(calls) > TOKENS // 2
    assert_same(got, want.answer)
