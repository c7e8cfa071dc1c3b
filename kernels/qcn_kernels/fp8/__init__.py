"""Block-scaled FP8 weights, and linear layers of a prefill that read them. See README.md.

A tensor on a GPU takes the kernels. The CPU has no FP8 products: weights are dequantised at load.
"""

from torch import Tensor

from qcn_kernels.fp8.matrices import BLOCK, Fp8Matrices
from qcn_kernels.fp8.quantised import Activations, Quantised, plain
from qcn_kernels.fp8.reference import dequantise

__all__ = ["BLOCK", "Activations", "Fp8Matrices", "Quantised", "dequantise", "linear", "plain"]


def linear(x: Activations, weight: Fp8Matrices, out: Tensor | None = None) -> Tensor:
    """Return `x · weightᵀ` for the tokens of a prefill, on a GPU.

    Args:
        x: [T, columns] bf16. Where the chip multiplies FP8 (compute capability 8.9 and later) it
            is quantised, 128 columns to a scale, unless it comes so; elsewhere the weight becomes
            bf16 on the way.
        weight: [rows, columns].
        out: [T, rows] in x's dtype, a part of a wider tensor, say, the last of which may be wider
            than its rows by what rounds the whole up to 16; none is a new one.

    Returns:
        [T, rows] in x's dtype. A token's result does not depend on the others.
    """
    from qcn_kernels.fp8 import triton

    return triton.linear(x, weight, out)
