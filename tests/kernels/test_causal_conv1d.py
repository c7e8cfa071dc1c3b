"""The causal convolution against torch's own, whole, in pieces and token by token."""

import pytest
import torch
from qcn_kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from torch import Tensor
from torch.nn import functional


def expected(history: Tensor, weight: Tensor, tokens: int) -> Tensor:
    """Convolve [T, C] with torch, which wants channels first; return the last `tokens`."""
    kernel, channels = weight.shape
    padded = functional.pad(history.T[None], (kernel - 1, 0))
    out = functional.conv1d(padded, weight.T[:, None].contiguous(), groups=channels)[0].T
    return functional.silu(out)[-tokens:]


@pytest.mark.parametrize("kernel", [1, 2, 4, 5])
@pytest.mark.parametrize("pieces", [[1], [75], [2, 1, 60, 3], [1, 1, 1, 1]])
def test_pieces_equal_the_whole(kernel: int, pieces: list[int]) -> None:
    channels = 63
    weight = torch.randn(kernel, channels)
    past, x = torch.randn(kernel - 1, channels), torch.randn(sum(pieces), channels)
    state = past.clone()
    got = torch.cat([causal_conv1d(p, weight=weight, state=state) for p in torch.split(x, pieces)])
    history = torch.cat((past, x))
    torch.testing.assert_close(got, expected(history, weight, len(x)), atol=1e-5, rtol=1e-5)
    assert torch.equal(state, history[len(x) :])


@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_steps_equal_the_whole(kernel: int) -> None:
    weight, x = torch.randn(kernel, 17), torch.randn(9, 17)
    state = torch.zeros(kernel - 1, 17)
    got = torch.stack([causal_conv1d_step(row, weight=weight, state=state) for row in x])
    torch.testing.assert_close(got, expected(x, weight, 9), atol=1e-5, rtol=1e-5)


def test_the_input_and_what_lies_around_the_state_are_untouched() -> None:
    surroundings = torch.full((5, 7), torch.nan)
    state = surroundings[1:4].zero_()
    x = torch.randn(2, 7)
    before = x.clone()
    assert causal_conv1d(x, weight=torch.randn(4, 7), state=state).isfinite().all()
    assert torch.equal(x, before)
    assert surroundings[1:4].isfinite().all()
    assert surroundings[[0, 4]].isnan().all()
