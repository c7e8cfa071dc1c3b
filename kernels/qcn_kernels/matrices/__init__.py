"""Weights in the formats they are stored in, for kernels that multiply by them. See README.md."""

from torch import Tensor

from qcn_kernels.fp8.matrices import Fp8Matrices
from qcn_kernels.groupwise import GroupwiseMatrices

__all__ = ["Matrices"]

Matrices = Tensor | Fp8Matrices | GroupwiseMatrices
"""One matrix, or a stack of them. On the CPU FP8 is dequantised at load, groups whenever used."""
