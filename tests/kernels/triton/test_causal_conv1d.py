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


@pytest.mark.parametrize(("head_dim", "rest"), [(16, 0), (60, 75)])
def test_the_first_heads_are_normalised_and_the_first_of_them_scaled(
    call: Caller, head_dim: int, rest: int
) -> None:
    channels = 3 * head_dim + rest
    x, weight, state = torch.randn(35, channels), torch.randn(4, channels), torch.randn(3, channels)
    want = expected(x, weight, state)
    want[:, : 3 * head_dim] = l2_norm(want[:, : 3 * head_dim].view(-1, 3, head_dim)).flatten(1)
    want[:, : 2 * head_dim] *= head_dim**-0.5
    sizes = {"head_dim": head_dim, "normalised": 3, "scaled": 2}
    got = call(causal_conv1d_l2_norm, x=x, weight=weight, state=state, **sizes)
    assert_agrees("causal_conv1d", got, want, hardware=call.hardware)


@pytest.mark.parametrize(("kernel", "channels"), [(1, 17), (2, 300), (4, 63)])
def test_steps_equal_the_whole(call: Caller, kernel: int, channels: int) -> None:
    weight, state = torch.randn(kernel, channels), torch.randn(kernel - 1, channels)
    x = torch.randn(5, channels)
    want, history = expected(x, weight, state), torch.cat((state, x))
    out = [call(causal_conv1d_step, x=row, weight=weight, state=state) for row in x]
    assert_agrees("causal_conv1d", torch.stack(out), want, hardware=call.hardware)
    assert torch.equal(state, history[len(x) :])


def test_no_token_depends_on_where_a_launch_begins(call: Caller) -> None:
    weight, state, x = torch.randn(4, 40), torch.randn(3, 40), torch.randn(170, 40)
    pieces = state.clone()
    whole = call(causal_conv1d, x=x, weight=weight, state=state)
    parts = [
        call(causal_conv1d, x=part, weight=weight, state=pieces)
        for part in torch.split(x, [33, 137])
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(pieces, state)
