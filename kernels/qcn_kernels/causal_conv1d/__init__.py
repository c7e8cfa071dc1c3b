"""Depthwise causal convolution over time with a carried state. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

from torch import Tensor

from qcn_kernels.causal_conv1d import reference
from qcn_kernels.choice import uses_triton

__all__ = ["causal_conv1d", "causal_conv1d_step"]


def causal_conv1d(x: Tensor, *, weight: Tensor, state: Tensor) -> Tensor:
    """Convolve T tokens, x [T, channels]; see `reference.causal_conv1d`."""
    if uses_triton(x):
        from qcn_kernels.causal_conv1d import triton

        return triton.causal_conv1d(x, weight=weight, state=state)
    return reference.causal_conv1d(x, weight=weight, state=state)


def causal_conv1d_step(x: Tensor, *, weight: Tensor, state: Tensor) -> Tensor:
    """Convolve one token, x [channels]; see `reference.causal_conv1d_step`."""
    if uses_triton(x):
        from qcn_kernels.causal_conv1d import triton

        return triton.causal_conv1d_step(x, weight=weight, state=state)
    return reference.causal_conv1d_step(x, weight=weight, state=state)
