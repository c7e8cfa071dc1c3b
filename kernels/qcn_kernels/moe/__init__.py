"""Router and sparse experts. See README.md."""

from qcn_kernels.moe.cpu import experts, experts_step, route

__all__ = ["experts", "experts_step", "route"]
