"""The RMS norms on a GPU: whole rows to a program, fp32 between one reading and one writing.

How many rows share a program depends on their length alone, so a row's sum does not depend on how
many rows there are.
"""

import torch
import triton.language as tl
from torch import Tensor

from qcn_kernels.fp8.matrices import BLOCK
from qcn_kernels.fp8.quantised import Quantised, empty_quantised
from qcn_kernels.launch import cdiv, kernel, next_power_of_2
from qcn_kernels.matrices.triton import store_quantised

TILE = 4096  # elements of a program, or one row


@kernel(do_not_specialize=["rows"])
def _rms_norm(
    p_x,  # [T, H, D]
    p_extra,  # [T, H, D]: what is added to x first, or the gate; x itself where neither is asked
    p_scale,  # [D] or [H, D] fp32
    p_out,  # [T, H, D]
    p_values,  # [T, H, D] e4m3, and
    p_scales,  # [T, H, D / 128] fp32: the output once more, for FP8 products
    rows,  # T · H
    stride_x_t,
    stride_x_h,
    stride_extra_t,
    stride_extra_h,
    stride_scale,
    eps,
    H: tl.constexpr,
    D: tl.constexpr,
    ADDED: tl.constexpr,
    GATED: tl.constexpr,
    QUANTISED: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    o_row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)[:, None]
    o_d = tl.arange(0, BD)[None, :]
    mask = (o_row < rows) & (o_d < D)
    i_t, i_h = o_row // H, o_row % H
    at_x = i_t * stride_x_t + i_h * stride_x_h + o_d
    at_extra = i_t * stride_extra_t + i_h * stride_extra_h + o_d
    b_x = tl.load(p_x + at_x, mask=mask, other=0.0).to(tl.float32)
    if ADDED:
        b_x += tl.load(p_extra + at_extra, mask=mask, other=0.0).to(tl.float32)
        tl.store(p_x + at_x, b_x.to(p_x.dtype.element_ty), mask=mask)
    b_scale = tl.load(p_scale + i_h * stride_scale + o_d, mask=mask, other=0.0)
    b_y = b_x * tl.rsqrt(tl.sum(b_x * b_x, axis=1) / D + eps)[:, None] * b_scale
    if GATED:
        b_gate = tl.load(p_extra + at_extra, mask=mask, other=0.0).to(tl.float32)
        b_y *= b_gate * tl.sigmoid(b_gate)
    b_y = b_y.to(p_out.dtype.element_ty)
    tl.store(p_out + o_row * D + o_d, b_y, mask=mask)
    if QUANTISED:
        b_y = b_y.to(tl.float32)
        store_quantised(b_y, p_values, p_scales, o_row, o_d, mask, rows, D, BR, BD)


def rms_norm(x: Tensor, *, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return `reference.rms_norm` in `dtype`.

    Args:
        x: [..., dim], bf16 or fp32, at most three dimensions, the last one without gaps.
        scale: [dim] or [heads, dim] fp32.
        eps: added to the mean square.
        dtype: of the result.
    """
    return _launch(x, x, scale, eps, dtype, added=False, gated=False)


def add_rms_norm(
    x: Tensor, *, added: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Add `added` to the residual stream x in place, then `rms_norm`."""
    return _launch(x, added, scale, eps, dtype, added=True, gated=False)


def rms_norm_quantised(
    x: Tensor, *, scale: Tensor, eps: float, dtype: torch.dtype, added: Tensor | None = None
) -> Quantised:
    """Return the norm of x [T, dim], dim at least 128, with its quantised form beside it.

    `added` is added to x in place first, if it is given.
    """
    room = empty_quantised(x.new_empty(x.shape, dtype=dtype), BLOCK)
    extra = x if added is None else added
    _launch(x, extra, scale, eps, dtype, added=added is not None, gated=False, room=room)
    return room


def gated_rms_norm(
    x: Tensor, *, gate: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Return `rms_norm(x) · silu(gate)`."""
    return _launch(x, gate, scale, eps, dtype, added=False, gated=True)


def gated_rms_norm_quantised(
    x: Tensor, *, gate: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
) -> Quantised:
    """Return the same of heads x [T, H, dim] as [T, H · dim], with its quantised form beside it.

    A head has whole blocks of 128.
    """
    assert x.shape[2] % BLOCK == 0
    room = empty_quantised(x.new_empty(x.shape[0], x.shape[1] * x.shape[2], dtype=dtype), BLOCK)
    _launch(x, gate, scale, eps, dtype, added=False, gated=True, room=room)
    return room


def _launch(
    x: Tensor,
    extra: Tensor,
    scale: Tensor,
    eps: float,
    dtype: torch.dtype,
    *,
    added: bool,
    gated: bool,
    room: Quantised | None = None,
) -> Tensor:
    out = x.new_empty(x.shape, dtype=dtype) if room is None else room.plain
    assert extra.shape == x.shape
    if x.ndim == 1:
        x, extra = x.unsqueeze(0), extra.unsqueeze(0)
    dim = x.shape[-1]
    # Heads are compiled into the kernel, and so must not be what varies: rows are tokens. Where
    # there is one dimension for both, there is one of the other.
    heads = x.shape[-2] if x.ndim == 3 or scale.ndim == 2 else 1
    assert x.stride(-1) == extra.stride(-1) == scale.stride(-1) == 1
    assert scale.shape in {(dim,), (heads, dim)}
    assert scale.dtype == torch.float32
    block = next_power_of_2(dim)
    rows = x.numel() // dim
    block_rows = max(1, TILE // block)
    _rms_norm[(cdiv(rows, block_rows),)](
        x,
        extra,
        scale,
        out,
        out if room is None else room.values,
        out if room is None else room.scales,
        rows,
        x.stride(0),
        x.stride(-2),
        extra.stride(0),
        extra.stride(-2),
        scale.stride(0) if scale.ndim == 2 else 0,
        eps,
        H=heads,
        D=dim,
        ADDED=added,
        GATED=gated,
        QUANTISED=room is not None,
        BR=block_rows,
        BD=block,
        num_warps=4,
    )
    return out
