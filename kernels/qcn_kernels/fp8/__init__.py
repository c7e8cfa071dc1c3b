"""Block-scaled FP8 weights, and linear layers that read them as they are. See README.md.

A tensor on a GPU takes the kernels. The CPU has no FP8 products: weights are dequantised at load.
"""

from torch import Tensor

from qcn_kernels.fp8.matrices import BLOCK, Fp8Matrices
from qcn_kernels.fp8.reference import dequantise

__all__ = ["BLOCK", "Fp8Matrices", "dequantise", "linear", "linear_step"]


def linear(x: Tensor, weight: Fp8Matrices) -> Tensor:
    """Return `x · weightᵀ` for the tokens of a prefill, on a GPU.

    Args:
        x: [T, columns] bf16. Where the chip multiplies FP8 (compute capability 8.9 and later) it
            is quantised, 128 columns to a scale; elsewhere the weight becomes bf16 on the way.
        weight: [rows, columns].

    Returns:
        [T, rows] in x's dtype. A token's result does not depend on the others.
    """
    from qcn_kernels.fp8 import triton

    return triton.linear(x, weight)


def linear_step(x: Tensor, weight: Fp8Matrices) -> Tensor:
    """The same for one token [columns], or [T, columns] for a few that are verified together.

    Activations are not quantised here: decode and prefill agree within tolerance.
    """
    from qcn_kernels.fp8 import triton

    return triton.linear_step(x, weight)
