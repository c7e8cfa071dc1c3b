"""Router and sparse experts. See README.md."""

from qcn_kernels.moe.cpu import Matrices, experts, experts_step, route

__all__ = ["Matrices", "experts", "experts_step", "route"]
