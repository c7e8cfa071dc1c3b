"""The kernels' reference draws as the engine's sampler does, given the same uniform number."""

import pytest
import torch
from qcn_inference.request import SamplingParams
from qcn_inference.sampling import Sampler
from qcn_kernels.sampling import greedy, sample

PARAMETERS = pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 40, 0.95), (0.3, 0, 0.8), (2.0, 7, 1.0), (1.0, 0, 1.0), (1.0, 500, 0.0), (0.7, 1, 0.5)],
)


def drawn_by_sampler(
    logits: torch.Tensor, params: SamplingParams, uniform: float, patch: pytest.MonkeyPatch
) -> int:
    """The token for which the sampler's probabilities, summed as it orders them, exceed uniform."""

    def multinomial(probabilities: torch.Tensor, count: int, **_: object) -> torch.Tensor:
        assert count == 1
        below = probabilities.cumsum(-1)
        return torch.searchsorted(below, torch.tensor([uniform]) * below[-1], right=True)

    patch.setattr(torch, "multinomial", multinomial)
    return Sampler(params).choose(logits)


@PARAMETERS
def test_the_same_uniform_number_gives_the_samplers_token(
    temperature: float, top_k: int, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, uniform = 3 * torch.randn(20, 300), torch.rand(20)
    got = sample(logits, temperature=temperature, top_k=top_k, top_p=top_p, uniform=uniform)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    want = [
        drawn_by_sampler(row, params, u, monkeypatch)
        for row, u in zip(logits, uniform.tolist(), strict=True)
    ]
    assert got.tolist() == want


def test_greedy_takes_the_first_of_equals_as_the_sampler_does() -> None:
    logits = torch.randint(0, 3, (50, 40)).float()
    sampler = Sampler(SamplingParams(temperature=0.0))
    assert greedy(logits).tolist() == [sampler.choose(row) for row in logits]


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    """Uniform numbers on a grid: each token is met as often as its share, to one of 1,000."""
    logits = torch.tensor([2.0, 0.0, 1.0, -3.0])
    rows = logits.expand(1000, 4)
    uniform = (torch.arange(1000) + 0.5) / 1000
    ids = sample(rows, temperature=1.0, top_k=3, top_p=0.99, uniform=uniform)
    share = logits.softmax(-1)
    share[3] = 0.0
    want = 1000 * share / share.sum()
    assert ((ids.bincount(minlength=4) - want).abs() <= 1).all()
