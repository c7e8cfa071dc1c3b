"""On a GPU: rotary tables in one launch, and query and key heads normalised and turned in one."""

import functools

import torch
import triton.language as tl
from torch import Tensor

from qcn_kernels.launch import cdiv, kernel, next_power_of_2
from qcn_kernels.overlap.triton import await_previous, let_next_begin, overlapping
from qcn_kernels.rotary.reference import frequencies

TILE = 4096  # elements of a program
TABLES_TILE = 1024  # the same of a program that makes tables


@kernel(do_not_specialize=["tokens"])
def _rotary_tables(
    p_positions,  # [T] int64
    p_turns,  # [ROTARY / 2] fp32
    p_cos,  # [T, ROTARY] fp32
    p_sin,  # [T, ROTARY] fp32
    tokens,
    ROTARY: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    o_t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)[:, None]
    o_d = tl.arange(0, BD)[None, :]
    mask = (o_t < tokens) & (o_d < ROTARY)
    half: tl.constexpr = ROTARY // 2
    b_position = tl.load(p_positions + o_t, mask=o_t < tokens, other=0).to(tl.float32)
    b_angle = b_position * tl.load(p_turns + o_d % half, mask=o_d < ROTARY, other=0.0)
    b_sin = tl.sin(b_angle)
    at = o_t * ROTARY + o_d
    tl.store(p_cos + at, tl.cos(b_angle), mask=mask)
    tl.store(p_sin + at, tl.where(o_d < half, -b_sin, b_sin), mask=mask)


@functools.cache
def _turns(rotary_dim: int, theta: float, device: torch.device) -> Tensor:
    return frequencies(rotary_dim, theta, device)


def rotary_tables(positions: Tensor, *, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return `reference.rotary_tables` of positions [T] int64, without gaps."""
    assert positions.dtype == torch.int64
    assert positions.is_contiguous()
    tokens = len(positions)
    cos = torch.empty(tokens, rotary_dim, device=positions.device)
    sin = torch.empty_like(cos)
    block = next_power_of_2(rotary_dim)
    block_tokens = max(1, TABLES_TILE // block)
    _rotary_tables[(cdiv(tokens, block_tokens),)](
        positions,
        _turns(rotary_dim, theta, positions.device),
        cos,
        sin,
        tokens,
        ROTARY=rotary_dim,
        BT=block_tokens,
        BD=block,
        num_warps=4,
    )
    return cos, sin


@kernel(do_not_specialize=["rows"])
def _rms_norm_rotary(
    p_x,  # [T, H, D]
    p_scale,  # [H, D] fp32
    p_cos,  # [T, ROTARY] fp32
    p_sin,  # [T, ROTARY] fp32
    p_out,  # [T, H, D]
    rows,  # T · H
    stride_t,
    stride_h,
    eps,
    H: tl.constexpr,
    D: tl.constexpr,
    ROTARY: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    let_next_begin(OVERLAPS)
    await_previous(OVERLAPS)
    o_row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)[:, None]
    o_d = tl.arange(0, BD)[None, :]
    half: tl.constexpr = ROTARY // 2
    o_partner = tl.where(o_d < half, o_d + half, o_d - half)
    mask = (o_row < rows) & (o_d < D)
    turns = (o_row < rows) & (o_d < ROTARY)
    i_t, i_h = o_row // H, o_row % H
    p_row = p_x + i_t * stride_t + i_h * stride_h
    b_x = tl.load(p_row + o_d, mask=mask, other=0.0).to(tl.float32)
    b_partner = tl.load(p_row + o_partner, mask=turns, other=0.0).to(tl.float32)
    b_scale = tl.load(p_scale + i_h * D + o_d, mask=mask, other=0.0)
    b_partner_scale = tl.load(p_scale + i_h * D + o_partner, mask=turns, other=0.0)
    b_cos = tl.load(p_cos + i_t * ROTARY + o_d, mask=turns, other=1.0)
    b_sin = tl.load(p_sin + i_t * ROTARY + o_d, mask=turns, other=0.0)
    root = tl.rsqrt(tl.sum(b_x * b_x, axis=1) / D + eps)[:, None]
    b_y = b_x * root * b_scale * b_cos + b_partner * root * b_partner_scale * b_sin
    tl.store(p_out + o_row * D + o_d, b_y.to(p_out.dtype.element_ty), mask=mask)


def rms_norm_rotary(
    x: Tensor, *, scale: Tensor, eps: float, cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> Tensor:
    """Normalise heads and turn their first `rotary_dim` dimensions.

    Args:
        x: [T, heads, head_dim], bf16 or fp32, the last dimension without gaps.
        scale: [heads, head_dim] fp32.
        eps: added to the mean square.
        cos, sin: [T, rotary_dim] fp32 from `rotary_tables`.
        dtype: of the result.

    Returns:
        [T, heads, head_dim].
    """
    tokens, heads, head_dim = x.shape
    rotary_dim = cos.shape[1]
    assert x.stride(2) == 1
    assert scale.shape == (heads, head_dim)
    assert cos.shape == sin.shape == (tokens, rotary_dim)
    assert scale.dtype == cos.dtype == sin.dtype == torch.float32
    assert scale.is_contiguous()
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    out = x.new_empty(x.shape, dtype=dtype)
    block = next_power_of_2(head_dim)
    block_rows = max(1, TILE // block)
    _rms_norm_rotary[(cdiv(tokens * heads, block_rows),)](
        x,
        scale,
        cos,
        sin,
        out,
        tokens * heads,
        x.stride(0),
        x.stride(1),
        eps,
        H=heads,
        D=head_dim,
        ROTARY=rotary_dim,
        BR=block_rows,
        BD=block,
        num_warps=4,
        **overlapping(x),
    )
    return out
