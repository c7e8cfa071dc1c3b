"""Rotary position embedding of the first dimensions of a head. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

import torch
from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.rms_norm.reference import rms_norm
from qcn_kernels.rotary import reference
from qcn_kernels.rotary.reference import apply_rotary

__all__ = ["apply_rotary", "rms_norm_rotary", "rotary_tables"]


def rotary_tables(positions: Tensor, *, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosine and signed sine of positions [T] int64; see `reference.rotary_tables`."""
    if uses_triton(positions):
        from qcn_kernels.rotary import triton

        return triton.rotary_tables(positions, rotary_dim=rotary_dim, theta=theta)
    return reference.rotary_tables(positions, rotary_dim=rotary_dim, theta=theta)


def rms_norm_rotary(
    x: Tensor, *, scale: Tensor, eps: float, cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> Tensor:
    """Normalise heads x [T, heads, head_dim] and turn them; return them in `dtype`.

    Args:
        x: query or key heads.
        scale: [heads, head_dim] fp32, of the norm.
        eps: added to the mean square.
        cos, sin: [T, rotary_dim] fp32 from `rotary_tables`.
        dtype: of the result.
    """
    if uses_triton(x):
        from qcn_kernels.rotary import triton

        return triton.rms_norm_rotary(x, scale=scale, eps=eps, cos=cos, sin=sin, dtype=dtype)
    normal = rms_norm(x.to(torch.float32), scale=scale, eps=eps)
    return apply_rotary(normal, cos=cos.unsqueeze(1), sin=sin.unsqueeze(1)).to(dtype)
