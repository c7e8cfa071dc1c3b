"""The causal convolution in Triton against its reference in fp64, in pieces and token by token."""

import pytest
import torch
from interpreted import Caller
from kernel_tolerances import assert_agrees
from qcn_kernels.causal_conv1d import reference
from qcn_kernels.causal_conv1d.triton import (
    causal_conv1d,
    causal_conv1d_l2_norm,
    causal_conv1d_step,
)
from qcn_kernels.rms_norm.reference import l2_norm
from torch import Tensor


def expected(x: Tensor, weight: Tensor, state: Tensor) -> Tensor:
    """Outputs in fp64; `state` is left as it is."""
    return reference.causal_conv1d(x.double(), weight=weight.double(), state=state.double().clone())


@pytest.mark.parametrize(
    ("kernel", "channels", "pieces", "dtype"),
    [
        (4, 300, [75], torch.float32),
        (4, 63, [1, 2, 3, 40], torch.float32),
        (1, 17, [5], torch.float32),
        (5, 128, [33, 3], torch.bfloat16),
    ],
)
def test_pieces_equal_the_whole(
    call: Caller, kernel: int, channels: int, pieces: list[int], dtype: torch.dtype
) -> None:
    weight, state = torch.randn(kernel, channels), torch.randn(kernel - 1, channels)
    x = torch.randn(sum(pieces), channels).to(dtype)
    want, history = expected(x, weight, state), torch.cat((state, x.float()))
    out = [
        call(causal_conv1d, x=piece, weight=weight, state=state) for piece in torch.split(x, pieces)
    ]
    assert_agrees("causal_conv1d", torch.cat(out), want, hardware=call.hardware)
    assert torch.equal(state, history[len(x) :])


def test_views_of_a_wider_tensor_are_read_as_they_lie(call: Caller) -> None:
    wide, weights = torch.full((40, 200), torch.nan), torch.full((4, 200), torch.nan)
    states = torch.full((3, 200), torch.nan)
    x, weight, state = wide[:, 50:180], weights[:, 50:180], states[:, 50:180]
    for part in (x, weight, state):
        part.normal_()
    want = expected(x, weight, state)
    got = call(causal_conv1d, x=x, weight=weight, state=state)
    assert_agrees("causal_conv1d", got, want, hardware=call.hardware)
    assert torch.equal(state, x[-3:])


@pytest.mark.parametrize("head_dim", [16, 60])
def test_heads_are_normalised_and_the_first_are_scaled(call: Caller, head_dim: int) -> None:
    x, weight = torch.randn(35, 3 * head_dim), torch.randn(4, 3 * head_dim)
    state = torch.randn(3, 3 * head_dim)
    want = l2_norm(expected(x, weight, state).view(-1, 3, head_dim))
    want[:, :2] *= head_dim**-0.5
    got = call(
        causal_conv1d_l2_norm, x=x, weight=weight, state=state, head_dim=head_dim, scaled_heads=2
    )
    assert_agrees("causal_conv1d", got, want.flatten(1), hardware=call.hardware)


@pytest.mark.parametrize(("kernel", "channels"), [(1, 17), (2, 300), (4, 63)])
def test_steps_equal_the_whole(call: Caller, kernel: int, channels: int) -> None:
    weight, state = torch.randn(kernel, channels), torch.randn(kernel - 1, channels)
    x = torch.randn(5, channels)
    want, history = expected(x, weight, state), torch.cat((state, x))
    out = [call(causal_conv1d_step, x=row, weight=weight, state=state) for row in x]
    assert_agrees("causal_conv1d", torch.stack(out), want, hardware=call.hardware)
    assert torch.equal(state, history[len(x) :])


def test_no_token_depends_on_where_a_launch_begins(call: Caller) -> None:
    weight, state, x = torch.randn(4, 40), torch.randn(3, 40), torch.randn(70, 40)
    pieces = state.clone()
    whole = call(causal_conv1d, x=x, weight=weight, state=state)
    parts = [
        call(causal_conv1d, x=part, weight=weight, state=pieces)
        for part in torch.split(x, [33, 37])
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(pieces, state)
