"""The gated delta rule by chunks, steps and drafts against the recurrence written out, in fp64."""

import pytest
import torch
from qcn_kernels.gated_delta_rule import (
    chunk_gated_delta_rule,
    commit_gated_delta_rule,
    gated_delta_rule_step,
    verify_gated_delta_rule,
)
from qcn_kernels.gated_delta_rule.reference import gated_delta_rule
from qcn_kernels.rms_norm import l2_norm
from torch import Tensor


def inputs(
    tokens: int, *, key_heads: int, shared: int, key_dim: int, value_dim: int
) -> dict[str, Tensor]:
    """Draw what a layer would hand over; decays from forgetting at once to hardly ever."""
    value_heads = key_heads * shared
    return {
        "q": l2_norm(torch.randn(tokens, key_heads, key_dim)) * key_dim**-0.5,
        "k": l2_norm(torch.randn(tokens, key_heads, key_dim)),
        "v": torch.randn(tokens, value_heads, value_dim),
        "g": -(10 ** torch.empty(tokens, value_heads).uniform_(-4, 1)),
        "beta": torch.rand(tokens, value_heads),
    }


def expected(drawn: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    exact = state.double()
    out = gated_delta_rule(**{name: x.double() for name, x in drawn.items()}, state=exact)
    return out.float(), exact.float()


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize(
    ("key_heads", "shared", "key_dim", "value_dim"), [(1, 1, 8, 8), (2, 3, 20, 12), (3, 1, 60, 75)]
)
def test_chunks_equal_the_recurrence(
    tokens: int, key_heads: int, shared: int, key_dim: int, value_dim: int
) -> None:
    drawn = inputs(tokens, key_heads=key_heads, shared=shared, key_dim=key_dim, value_dim=value_dim)
    state = torch.randn(key_heads * shared, key_dim, value_dim)
    want, want_state = expected(drawn, state)
    got = chunk_gated_delta_rule(**drawn, state=state)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state, want_state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [1, 2, 3])
def test_one_step_equals_the_recurrence(shared: int) -> None:
    drawn = inputs(1, key_heads=2, shared=shared, key_dim=20, value_dim=12)
    state = torch.randn(2 * shared, 20, 12)
    want, want_state = expected(drawn, state)
    got = gated_delta_rule_step(**{name: x[0] for name, x in drawn.items()}, state=state)
    torch.testing.assert_close(got, want[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, want_state, atol=1e-5, rtol=1e-5)


def test_total_forgetting_stays_finite() -> None:
    """A decay that underflows within a chunk leaves zeros, no NaN."""
    drawn = inputs(130, key_heads=1, shared=2, key_dim=16, value_dim=16)
    drawn["g"].fill_(-200.0)
    state = torch.full((2, 16, 16), 1e30)
    want, want_state = expected(drawn, state)
    got = chunk_gated_delta_rule(**drawn, state=state)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, want_state, atol=1e-5, rtol=1e-5)


def test_the_state_is_written_in_place_and_nothing_else_is() -> None:
    drawn = inputs(70, key_heads=2, shared=2, key_dim=8, value_dim=8)
    before = {name: x.clone() for name, x in drawn.items()}
    surroundings = torch.full((6, 8, 8), torch.nan)
    state = surroundings[1:5].zero_()
    out = chunk_gated_delta_rule(**drawn, state=state)
    assert out.isfinite().all()
    assert surroundings[1:5].isfinite().all()
    assert surroundings[1:5].count_nonzero() > 0
    assert surroundings[[0, 5]].isnan().all()
    for name, x in drawn.items():
        assert torch.equal(x, before[name]), name


@pytest.mark.parametrize("tokens", [1, 2, 7, 16])
@pytest.mark.parametrize(
    ("key_heads", "shared", "key_dim", "value_dim"), [(1, 1, 8, 8), (2, 3, 20, 12), (3, 1, 60, 75)]
)
def test_any_number_of_verified_tokens_can_be_taken_into_the_state(
    tokens: int, key_heads: int, shared: int, key_dim: int, value_dim: int
) -> None:
    """What they read out is what the recurrence reads; the state is untouched until they are."""
    drawn = inputs(tokens, key_heads=key_heads, shared=shared, key_dim=key_dim, value_dim=value_dim)
    before = torch.randn(key_heads * shared, key_dim, value_dim)
    state = before.clone()
    want, _ = expected(drawn, before)
    got, verified = verify_gated_delta_rule(**drawn, state=state)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert torch.equal(state, before)
    for taken in range(tokens + 1):
        state = before.clone()
        commit_gated_delta_rule(verified, taken, state=state)
        want_state = before
        if taken:
            _, want_state = expected({name: x[:taken] for name, x in drawn.items()}, before)
        torch.testing.assert_close(state, want_state, atol=1e-4, rtol=1e-4)


def test_verified_tokens_that_forget_everything_stay_finite() -> None:
    drawn = inputs(16, key_heads=1, shared=2, key_dim=16, value_dim=16)
    drawn["g"].fill_(-200.0)
    state = torch.full((2, 16, 16), 1e30)
    want, want_state = expected(drawn, state)
    got, verified = verify_gated_delta_rule(**drawn, state=state)
    commit_gated_delta_rule(verified, 16, state=state)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, want_state, atol=1e-5, rtol=1e-5)
