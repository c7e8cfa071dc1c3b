"""Root mean square norms, plain and gated. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

import torch
from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.rms_norm import reference
from qcn_kernels.rms_norm.normed import Normed
from qcn_kernels.rms_norm.reference import l2_norm

__all__ = ["Normed", "add_rms_norm", "gated_rms_norm", "l2_norm", "normed", "rms_norm"]


def normed(x: Tensor, *, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor | Normed:
    """Return the norm of a token's residual stream x [dim] fp32 for the products that read it.

    On the CPU it comes in `dtype`; on a GPU they take it themselves.
    """
    if uses_triton(x):
        return Normed(x, scale, eps)
    return reference.rms_norm(x, scale=scale, eps=eps).to(dtype)


def rms_norm(x: Tensor, *, scale: Tensor, eps: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return `x / √(mean(x²) + eps) · scale` in `dtype`; see `reference.rms_norm`."""
    if uses_triton(x):
        from qcn_kernels.rms_norm import triton

        return triton.rms_norm(x, scale=scale, eps=eps, dtype=dtype)
    return reference.rms_norm(x, scale=scale, eps=eps).to(dtype)


def gated_rms_norm(x: Tensor, *, gate: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return `rms_norm(x) · silu(gate)`, fp32; see `reference.gated_rms_norm`."""
    if uses_triton(x):
        from qcn_kernels.rms_norm import triton

        return triton.gated_rms_norm(x, gate=gate, scale=scale, eps=eps, dtype=torch.float32)
    return reference.gated_rms_norm(x, gate=gate, scale=scale, eps=eps)


def add_rms_norm(
    x: Tensor, *, added: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Add `added` to the residual stream x [T, dim] in place; return its norm in `dtype`."""
    if uses_triton(x):
        from qcn_kernels.rms_norm import triton

        return triton.add_rms_norm(x, added=added, scale=scale, eps=eps, dtype=dtype)
    return reference.rms_norm(x.add_(added), scale=scale, eps=eps).to(dtype)
