"""Block-scaled FP8 weights. See README.md."""

from qcn_kernels.fp8.reference import dequantise

__all__ = ["dequantise"]
