"""Choosing tokens, against transformers' logits processors, and stopping at strings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.request import SamplingParams
from qcn_inference.sampling import Sampler, StopStrings, token_logprobs
from sampling import count, examples
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def expected_probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """transformers' distribution for the same parameters."""
    scores, ids = logits[None], torch.zeros(1, 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    scores = TopPLogitsWarper(params.top_p)(ids, scores)
    return torch.softmax(scores, dim=-1)[0]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=0.6, top_k=5, seed=2),
        SamplingParams(temperature=1.5, top_p=0.7, seed=3),
        SamplingParams(temperature=1.0, top_k=20, top_p=0.95, seed=4),
        SamplingParams(temperature=2.0, top_k=3, top_p=0.01, seed=5),
        SamplingParams(temperature=0.7, min_p=0.1, top_p=0.9, seed=6),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_distribution_of_transformers(params: SamplingParams) -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(11)) * 2
    expected = expected_probabilities(logits, params)
    sampler, draws = Sampler(params), count(sample=4000, full=40_000)
    drawn = torch.tensor([sampler.choose(logits) for _ in range(draws)])
    found = torch.bincount(drawn, minlength=40) / draws
    assert not found[expected == 0].any()
    # Five standard deviations of a count; the seeds are fixed, so this never flickers.
    bound = 5 * (expected * (1 - expected) / draws).sqrt()
    assert ((found - expected).abs() <= bound + 1e-9).all()


logits_strategy = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=50).map(torch.tensor)


@pytest.mark.long
@examples(sample=200, full=1500)
@given(logits=logits_strategy, top_k=st.integers(0, 60), top_p=st.floats(0, 1))
def test_zero_temperature_takes_the_first_of_the_most_probable(
    logits: torch.Tensor, top_k: int, top_p: float
) -> None:
    best = logits.tolist().index(max(logits.tolist()))
    assert Sampler(SamplingParams(0.0, top_k, top_p)).choose(logits) == best


@pytest.mark.long
@examples(sample=100, full=1000)
@given(logits=logits_strategy, seed=st.integers(0, 2**63 - 1))
def test_the_same_seed_draws_the_same_tokens(logits: torch.Tensor, seed: int) -> None:
    params = SamplingParams(temperature=1.3, top_p=0.9, seed=seed)
    one, other = Sampler(params), Sampler(params)
    assert [one.choose(logits) for _ in range(5)] == [other.choose(logits) for _ in range(5)]


def test_without_a_seed_draws_differ() -> None:
    logits, params = torch.zeros(1000), SamplingParams(temperature=1.0)
    draws = [[Sampler(params).choose(logits) for _ in range(1)] for _ in range(8)]
    assert len({tuple(draw) for draw in draws}) > 1


def test_log_probabilities_are_of_the_logits_as_they_are() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0])
    found = token_logprobs(logits, 0, 2)
    expected = torch.log_softmax(logits, dim=-1).tolist()
    assert found.logprob == pytest.approx(expected[0])
    assert [token for token, _ in found.top] == [1, 2]
    assert [value for _, value in found.top] == pytest.approx([expected[1], expected[2]])


def stopped(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The definition: read until some stop string is complete; the longest that ends there."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


@pytest.mark.long
@examples(sample=500, full=5000)
@given(
    pieces=st.lists(st.text("ab\n", max_size=4), max_size=12),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_stop_strings_are_found_across_the_borders_of_pieces(
    pieces: list[str], stops: tuple[str, ...]
) -> None:
    found, word, matcher = "", None, StopStrings(stops)
    for piece in pieces:
        text, word = matcher.push(piece)
        found += text
        # Nothing is shown that a stop string might still take back.
        assert stopped("".join(pieces), stops)[0].startswith(found)
        if word is not None:
            break
    else:
        found += matcher.flush()
    assert (found, word) == stopped("".join(pieces), stops)


def test_text_is_not_held_back_without_reason() -> None:
    matcher = StopStrings(("\n\n",))
    assert matcher.push("a = 1") == ("a = 1", None)
    assert matcher.push(" \n") == (" ", None)
    assert matcher.push("b") == ("\nb", None)
