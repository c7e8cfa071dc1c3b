"""Drafted tokens run at once are what they are one by one, and leave the state where they end.

In fp32 within 1e-4, which is what a decoded token and a prefilled one may differ by (the weights'
deviation is 0.05; `test_parity.py`). Seeds are fixed: no router near-tie lies among them.
"""

from pathlib import Path

import pytest
import torch
from qcn_inference.checkpoint import load_model
from qcn_inference.model import Model
from qcn_inference.state import State
from random_checkpoints import random_checkpoint
from sampling import count
from torch import Tensor

TOLERANCE = 1e-4


def one_by_one(model: Model, state: State, tokens: list[int]) -> Tensor:
    return torch.stack([model.decode(token, state) for token in tokens])


def assert_same_state(one: State, other: State) -> None:
    assert one.position == other.position
    for mine, theirs in zip(one.deltanet, other.deltanet, strict=True):
        torch.testing.assert_close(mine.convolution, theirs.convolution, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mine.recurrent, theirs.recurrent, atol=1e-4, rtol=1e-4)
    mine_kv, theirs_kv = one.kv_of(0, one.position), other.kv_of(0, other.position)
    pairs = (*mine_kv.keys, *mine_kv.values), (*theirs_kv.keys, *theirs_kv.values)
    for mine_part, theirs_part in zip(*pairs, strict=True):
        torch.testing.assert_close(mine_part, theirs_part, atol=1e-4, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(count(sample=6, full=24)))
def test_what_is_verified_is_what_is_decoded(seed: int, tmp_path: Path) -> None:
    """Rounds of drafts, of which some tokens stay and the others are as if they had never been."""
    model = load_model(random_checkpoint(tmp_path, seed, deviation=0.05))
    draw = torch.Generator().manual_seed(seed)

    def drawn(tokens: int) -> list[int]:
        ids: list[int] = torch.randint(
            0, model.config.vocab_size, (tokens,), generator=draw
        ).tolist()
        return ids

    drafting = model.new_state()
    model.prefill(drawn(70), drafting)
    stepping = drafting.fork()
    for size in (2, 16, 1, 7, 12):
        tokens = drawn(size)
        taken = int(torch.randint(0, size + 1, (1,), generator=draw))
        want = one_by_one(model, stepping.fork(), tokens)
        drafted = model.verify(tokens, drafting)
        torch.testing.assert_close(drafted.logits, want, atol=TOLERANCE, rtol=0)
        drafted.commit(taken)
        if taken:
            one_by_one(model, stepping, tokens[:taken])
        assert_same_state(drafting, stepping)
        token = drawn(1)
        torch.testing.assert_close(
            one_by_one(model, drafting, token),
            one_by_one(model, stepping, token),
            atol=TOLERANCE,
            rtol=0,
        )


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load_model(random_checkpoint(tmp_path, 1))


def test_a_state_waits_for_the_number_of_tokens_that_stay(model: Model) -> None:
    state = model.new_state()
    model.prefill([5, 6, 7], state)
    drafted = model.verify([8, 9], state)
    with pytest.raises(RuntimeError, match="middle"):
        model.decode(8, state)
    drafted.commit(0)
    assert state.position == 3
    model.decode(8, state)


@pytest.mark.parametrize("tokens", [-1, 3])
def test_no_more_tokens_stay_than_were_drafted(model: Model, tokens: int) -> None:
    state = model.new_state()
    drafted = model.verify([8, 9], state)
    with pytest.raises(ValueError, match="of 2 drafted tokens"):
        drafted.commit(tokens)


@pytest.mark.parametrize("ids", [[], [-1], [10**6]])
def test_what_is_no_token_is_refused(model: Model, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="token"):
        model.verify(ids, model.new_state())


def test_a_fork_keeps_what_it_had_while_drafts_are_written(model: Model) -> None:
    """Drafts stand behind the state's own keys and values, where no other state may read."""
    state = model.new_state()
    model.prefill(list(range(20)), state)
    fork = state.fork()
    alone = fork.fork()
    want = model.decode(3, alone)
    model.verify([8, 9, 10], state).commit(1)
    assert torch.equal(model.decode(3, fork), want)
