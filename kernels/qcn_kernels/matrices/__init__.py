"""Weights in the formats they are stored in, for kernels that multiply by them. See README.md."""

from torch import Tensor

from qcn_kernels.fp8.matrices import Fp8Matrices

__all__ = ["Matrices"]

Matrices = Tensor | Fp8Matrices
"""One matrix, or a stack of them; on the CPU a tensor, since FP8 is dequantised at load."""
