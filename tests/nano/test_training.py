"""The recipe's own forward is transformers' model, and a resumed run is the run."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nano_toy import toy_config
from qcn_nano.forward import ChunkScan, Trainable
from qcn_nano.model import new_model
from qcn_nano.optimizer import orthogonalise
from qcn_nano.train import MIDDLE_WEIGHT, PADDING, Plan, learning_rate_share, target_weights, train
from sampling import examples
from transformers import Qwen3NextForCausalLM

MIDDLE, END = 380, 373


def perturbed_toy(seed: int) -> Qwen3NextForCausalLM:
    """A toy model whose norms, biases and decays are no longer at their initial values."""
    model = new_model(toy_config(), seed)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param), alpha=0.03)
    return model


@pytest.mark.long
@examples(sample=4, full=60)
@given(seed=st.integers(0, 2**31), chunks=st.integers(1, 4))
def test_losses_and_gradients_are_those_of_transformers(seed: int, chunks: int) -> None:
    model = perturbed_toy(seed)  # which seeds what is drawn from here on, too
    ids = torch.randint(0, 384, (2, 32 * chunks))
    losses = Trainable(model, torch.float32, compiled=False).losses(ids)
    torch.autograd.backward(losses.tokens.sum() / (ids.numel() - 2))
    ours = {name: param.grad for name, param in model.named_parameters()}
    model.zero_grad()
    expected = model(ids, labels=ids).loss
    expected.backward()

    torch.testing.assert_close(losses.tokens.sum() / (ids.numel() - 2), expected)
    for name, param in model.named_parameters():
        torch.testing.assert_close(ours[name], param.grad, atol=2e-6, rtol=2e-4, msg=name)


def test_the_scan_over_chunks_has_the_gradient_it_states() -> None:
    torch.manual_seed(1)
    update, reading, key = (torch.randn(3, 2, 4, size, dtype=torch.double) for size in (5, 6, 6))
    last = torch.rand(3, 2, 1, 1, dtype=torch.double)
    inputs = [each.requires_grad_() for each in (update, reading * 0.3, key * 0.3, last)]

    assert torch.autograd.gradcheck(ChunkScan.apply, inputs)


@pytest.mark.long
@examples(sample=10, full=100)
@given(rows=st.integers(2, 24), columns=st.integers(2, 24), seed=st.integers(0, 2**31))
def test_an_orthogonalised_matrix_has_singular_values_near_one(
    rows: int, columns: int, seed: int
) -> None:
    numbers = torch.Generator().manual_seed(seed)
    update = orthogonalise(torch.randn(3, rows, columns, generator=numbers)).float()
    frobenius = update.square().sum((-2, -1)) / min(rows, columns)

    assert update.shape == (3, rows, columns)
    assert ((frobenius > 0.2) & (frobenius < 1.6)).all()


def test_middles_and_their_end_weigh_more_and_padding_nothing() -> None:
    # A document with a gap, a plain document, padding; a weight belongs to the token that follows.
    ids = torch.tensor([[7, 8, MIDDLE, 9, 9, END, 5, 5, END, PADDING, PADDING]])
    more = MIDDLE_WEIGHT

    assert target_weights(ids, MIDDLE, END).tolist() == [[1, 1, more, more, more, 1, 1, 1, 0, 0, 0]]


@pytest.mark.long
@examples(sample=40, full=2000)
@given(steps=st.integers(4, 5000))
def test_the_learning_rate_rises_holds_and_falls(steps: int) -> None:
    shares = [learning_rate_share(step, steps) for step in range(steps)]
    peak = shares.index(max(shares))

    assert all(0 < share <= 1 for share in shares)
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)


class KilledDuringStep:
    """Sequences of a run that is killed when it reads its n-th batch."""

    def __init__(self, sequences: numpy.ndarray, step: int) -> None:
        self._sequences, self._left = sequences, step

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, rows: numpy.ndarray) -> Any:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt
        return self._sequences[rows]


def toy_plan() -> Plan:
    return Plan(
        steps=4,
        batch=2,
        middle=MIDDLE,
        end=END,
        checkpoint_every=2,
        compiled=False,
        compute=torch.float32,
    )


def test_a_run_killed_and_started_again_ends_in_the_same_weights(tmp_path: Path) -> None:
    sequences = numpy.random.default_rng(5).integers(0, 384, (9, 64)).astype(numpy.int16)
    whole = train(toy_config(), sequences, toy_plan(), tmp_path / "whole").state_dict()
    killed: Any = KilledDuringStep(sequences, 4)
    with pytest.raises(KeyboardInterrupt):
        train(toy_config(), killed, toy_plan(), tmp_path / "killed")
    resumed = train(toy_config(), sequences, toy_plan(), tmp_path / "killed").state_dict()

    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    start = new_model(toy_config(), toy_plan().seed).state_dict()
    assert not torch.equal(start["model.norm.weight"], whole["model.norm.weight"])


def test_a_run_that_lacks_data_says_so_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 steps of 2 need more than the 3 sequences packed"):
        train(toy_config(), numpy.zeros((3, 64), numpy.int16), toy_plan(), tmp_path)
