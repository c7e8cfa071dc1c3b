"""Sampling in Triton against the reference in fp64."""

import pytest
import torch
from interpreted import Caller
from qcn_kernels.sampling import reference
from qcn_kernels.sampling.triton import BLOCK, greedy, sample
from torch import Tensor

NEAR = 1e-5  # of a border between two tokens, in probability: fp32 may see it on the other side


def check(
    call: Caller, logits: Tensor, temperature: float, top_k: int, top_p: float, uniform: Tensor
) -> None:
    """What is drawn has the uniform number between the sums without and with it, and is kept."""
    got = call(
        sample, logits=logits, temperature=temperature, top_k=top_k, top_p=top_p, uniform=uniform
    )
    ids, kept = reference.distribution(
        logits.double(), temperature=temperature, top_k=top_k, top_p=top_p
    )
    below = kept.cumsum(-1)
    place = (ids == got.unsqueeze(1)).int().argmax(-1, keepdim=True)
    assert torch.equal(ids.gather(1, place).squeeze(1), got), "not one of the top_k"
    high, probability = below.gather(1, place), kept.gather(1, place)
    target = uniform.double().unsqueeze(1) * below[:, -1:]
    assert (target <= high + NEAR).all()
    assert (target >= high - probability - NEAR).all()


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "temperature", "top_k", "top_p"),
    [
        (1, 5, 1.0, 64, 0.9),
        (3, BLOCK + 700, 0.7, 20, 0.95),
        (2, 2 * BLOCK + 1, 1.5, 40, 1.0),
        (4, 1000, 1.0, 7, 0.0),
        (4, 300, 1e-4, 3, 0.5),
    ],
)
def test_what_is_drawn_is_what_the_reference_draws(
    call: Caller, tokens: int, vocabulary: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = 3 * torch.randn(tokens, vocabulary + 3)[:, :vocabulary]
    check(call, logits, temperature, top_k, top_p, torch.rand(tokens))


def test_the_ends_of_the_uniform_numbers_are_drawn_from_what_is_kept(call: Caller) -> None:
    logits = torch.randn(1, 50).repeat(2, 1)
    uniform = torch.tensor([0.0, 1 - 2**-24])
    check(call, logits, 1.0, 10, 0.8, uniform)


def test_on_a_border_the_next_token_is_drawn_and_kept_mass_that_reaches_top_p_is_enough(
    call: Caller,
) -> None:
    """Four probabilities of a quarter, exact in fp32, of which two reach top_p."""
    uniform = torch.tensor([0.0, 0.5, 0.999])
    logits = torch.zeros(3, 4)
    got = call(sample, logits=logits, temperature=1.0, top_k=4, top_p=0.5, uniform=uniform)
    assert got.tolist() == [0, 1, 1]
    want = reference.sample(logits, temperature=1.0, top_k=4, top_p=0.5, uniform=uniform)
    assert torch.equal(got, want)


def test_of_equal_logits_the_lower_id_comes_first(call: Caller) -> None:
    """All logits of two blocks are equal: what is drawn are the first ids, in order."""
    uniform = (torch.arange(3) + 0.5) / 3
    logits = torch.zeros(3, BLOCK + 10)
    got = call(sample, logits=logits, temperature=1.0, top_k=3, top_p=1.0, uniform=uniform)
    assert got.tolist() == [0, 1, 2]


@pytest.mark.parametrize("vocabulary", [1, 100, 2 * BLOCK + 5])
def test_greedy_takes_the_first_of_the_largest(call: Caller, vocabulary: int) -> None:
    logits = torch.randint(-3, 3, (4, vocabulary)).float()
    assert torch.equal(call(greedy, logits=logits), logits.argmax(-1))


@pytest.mark.gpu
def test_the_real_vocabulary(on_gpu: Caller) -> None:
    logits = 3 * torch.randn(64, 151_936)
    assert torch.equal(on_gpu(greedy, logits=logits), logits.argmax(-1))
    check(on_gpu, logits, 1.0, 40, 0.95, torch.rand(64))
