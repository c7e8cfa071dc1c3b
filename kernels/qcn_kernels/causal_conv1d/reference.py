"""Depthwise causal convolution, then SiLU; the state is the last `kernel - 1` inputs."""

import torch
from torch import Tensor
from torch.nn import functional


def causal_conv1d(x: Tensor, *, weight: Tensor, state: Tensor) -> Tensor:
    """Convolve T tokens: `y[t] = silu(Σ_j weight[j] · x[t - kernel + 1 + j])`.

    Args:
        x: [T, channels] fp32.
        weight: [kernel, channels] fp32; the last row meets the newest token.
        state: [kernel - 1, channels] fp32, the inputs before x, oldest first; updated in place.

    Returns:
        [T, channels] fp32.
    """
    tokens = len(x)
    history = torch.cat((state, x))
    y = history[:tokens] * weight[0]
    for j in range(1, len(weight)):
        y.addcmul_(history[j : j + tokens], weight[j])
    state.copy_(history[tokens:])
    return functional.silu(y, inplace=True)


def causal_conv1d_step(x: Tensor, *, weight: Tensor, state: Tensor) -> Tensor:
    """Convolve one token, x [channels]; the same sum in fewer calls."""
    history = torch.cat((state, x.unsqueeze(0)))
    state.copy_(history[1:])
    return functional.silu(history.mul_(weight).sum(0), inplace=True)
