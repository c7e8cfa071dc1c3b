"""Matrix products of a block of tokens with a weight. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.linear import cpu

__all__ = ["linear"]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x · weightᵀ + bias` for the tokens of a prefill.

    Args:
        x: [T, columns] in the weight's dtype, bf16 or fp32.
        weight: [rows, columns].
        bias: [rows].

    Returns:
        [T, rows] in x's dtype.
    """
    if uses_triton(x):
        from qcn_kernels.linear import triton

        return triton.linear(x, weight, bias)
    return cpu.linear(x, weight, bias)
