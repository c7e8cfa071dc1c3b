"""Matrix products of a few tokens that are verified together, on a GPU.

A program takes some rows of the weight, which it reads once for all tokens, and multiplies by
tensor cores. Its warps share out the columns, so that even the rows of a small weight are loads
enough in flight; their sums are added up at the end. Activations stay bf16, as decode's do: they
are not quantised where the weight is FP8.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import INTERPRETED, OPERAND
from qcn_kernels.fp8.matrices import BLOCK, Fp8Matrices
from qcn_kernels.launch import cdiv, kernel
from qcn_kernels.linear import triton_step
from qcn_kernels.linear.stacked import Stacked, Weight
from qcn_kernels.matrices.triton import _scales, e4m3, stored


@dataclass(frozen=True, slots=True)
class Few:
    """What a program takes at once."""

    rows: int  # of the weight; divides a block of its scales
    columns: int  # of each warp; under one scale
    warps: int
    stages: int


# Chosen without hardware: loads as far ahead as fits beside a second program.
MANY_ROWS, FEW_ROWS = Few(32, 128, 4, 3), Few(16, 128, 4, 4)
MANY = 4096  # rows of a weight from which on there are programs enough of many
MOST_TOKENS = 16  # the least that tensor cores multiply


@triton.jit
def _rows(
    p_x,
    weights,
    p_bias,
    p_out,
    first,  # row of this part
    at_row,  # the part's first row among all
    tokens,
    stride_x,
    stride_out,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FORMAT: tl.constexpr,
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
    SPLITS: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    OPERAND: tl.constexpr,
):
    AT_ONCE: tl.constexpr = SPLITS * BC
    o_t, o_r = tl.arange(0, BT), first + tl.arange(0, BR)
    o_row = tl.minimum(o_r, ROWS - 1).to(tl.int64)
    o_s, o_c = tl.arange(0, SPLITS) * BC, tl.arange(0, BC)
    o_w = o_s[:, None, None] + o_c[None, None, :]
    o_x = o_s[:, None, None] + o_c[None, :, None]
    p_w = weights[0] + o_row[None, :, None] * COLUMNS + o_w
    p_x += o_t[None, None, :] * stride_x + o_x
    m_t = (o_t < tokens)[None, None, :]
    acc = tl.zeros([SPLITS, BR, BT], dtype=tl.float32)
    for at in range(0, COLUMNS, AT_ONCE):
        if COLUMNS % AT_ONCE == 0:
            b_w = tl.load(p_w + at)
            b_x = tl.load(p_x + at, mask=m_t, other=0.0)
        else:
            b_w = tl.load(p_w + at, mask=at + o_w < COLUMNS, other=0.0)
            b_x = tl.load(p_x + at, mask=m_t & (at + o_x < COLUMNS), other=0.0)
        b_x = b_x.to(tl.float32).to(OPERAND)
        if FORMAT == "plain":
            acc = tl.dot(b_w.to(tl.float32).to(OPERAND), b_x, acc, input_precision="ieee")
        else:
            b_part = tl.dot(e4m3(b_w, FORMAT).to(OPERAND), b_x, input_precision="ieee")
            one = tl.full([], 0, tl.int32)
            o_scale = tl.minimum(at + o_s, COLUMNS - 1)
            b_scale = _scales(weights[1], one, first, o_scale, ROWS, COLUMNS, FORMAT)
            acc += b_part * b_scale[:, None, None]
    b_out = tl.sum(acc, axis=0)
    here = (o_r < ROWS)[:, None] & (o_t < tokens)[None, :]
    if BIASED:
        b_out += tl.load(p_bias + at_row + o_r, mask=o_r < ROWS, other=0.0).to(tl.float32)[:, None]
    p = p_out + o_t[None, :] * stride_out + (at_row + o_r)[:, None]
    if ADDED:
        b_out += tl.load(p, mask=here, other=0.0)
    tl.store(p, b_out.to(p_out.dtype.element_ty), mask=here)


@kernel(do_not_specialize=["tokens"])
def _linear_few(
    p_x,  # [T, COLUMNS]
    weights,  # ROWS of them
    others,  # OTHER_ROWS under these
    p_bias,  # [ROWS + OTHER_ROWS]
    p_out,  # [T, ROWS + OTHER_ROWS]
    tokens,
    stride_x,
    stride_out,
    ROWS: tl.constexpr,
    OTHER_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FORMAT: tl.constexpr,
    OTHER_FORMAT: tl.constexpr,
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
    SPLITS: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """BR rows of either part of a weight, for all tokens."""
    programs: tl.constexpr = (ROWS + BR - 1) // BR
    i = tl.program_id(0)
    if i < programs:
        _rows(p_x, weights, p_bias, p_out, i * BR, 0, tokens, stride_x, stride_out, ROWS, COLUMNS,
              FORMAT, BIASED, ADDED, SPLITS, BT, BR, BC, OPERAND)  # fmt: skip
    elif OTHER_ROWS > 0:
        _rows(p_x, others, p_bias, p_out, (i - programs) * BR, ROWS, tokens, stride_x, stride_out,
              OTHER_ROWS, COLUMNS, OTHER_FORMAT, BIASED, ADDED, SPLITS, BT, BR, BC,
              OPERAND)  # fmt: skip


def linear_few(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """Return `x · weightᵀ + bias` in x's dtype; as `linear.linear_few`."""
    if _is_whole(weight):
        return triton_step.linear_step(x, weight, bias)
    out = x.new_empty(len(x), weight.shape[0])
    _launch(x, weight, bias, out, added=False)
    return out


def add_linear_few(to: Tensor, x: Tensor, weight: Weight, bias: Tensor | None) -> None:
    """Add a product to a residual stream; as `linear.add_linear_few`."""
    assert to.dtype == torch.float32
    if _is_whole(weight):
        triton_step.add_linear_step(to, x, weight, bias, gate=None, gating="sigmoid")
    else:
        _launch(x, weight, bias, to, added=True)


def _is_whole(weight: Weight) -> bool:
    """Whether products are fp32: for tests, no model of a size that matters is kept so."""
    return weight.dtype == torch.float32 and not INTERPRETED


def _launch(x: Tensor, weight: Weight, bias: Tensor | None, out: Tensor, *, added: bool) -> None:
    """Launch once for every two parts of a weight."""
    rows, columns = weight.shape
    assert x.shape[1] == columns
    assert out.shape == (len(x), rows)
    assert len(x) <= MOST_TOKENS
    assert x.stride(1) == out.stride(1) == 1
    assert bias is None or bias.shape == (rows,)
    parts: tuple[Tensor | Fp8Matrices, ...]
    parts = weight.parts if isinstance(weight, Stacked) else (weight,)
    few = MANY_ROWS if rows >= MANY else FEW_ROWS
    assert few.columns <= BLOCK
    assert BLOCK % few.rows == 0
    at = 0
    while parts:
        (one, *other), parts = parts[:2], parts[2:]
        given, format_name = stored(one)
        others, other_format = stored(other[0]) if other else (given, format_name)
        other_rows = len(other[0]) if other else 0
        here = out[:, at:]
        _linear_few[(cdiv(len(one), few.rows) + cdiv(other_rows, few.rows),)](
            x,
            given,
            others,
            x if bias is None else bias[at:],
            here,
            len(x),
            x.stride(0),
            here.stride(0),
            ROWS=len(one),
            OTHER_ROWS=other_rows,
            COLUMNS=columns,
            FORMAT=format_name,
            OTHER_FORMAT=other_format,
            BIASED=bias is not None,
            ADDED=added,
            SPLITS=few.warps,
            BT=MOST_TOKENS,
            BR=few.rows,
            BC=few.columns,
            OPERAND=OPERAND,
            num_warps=few.warps,
            num_stages=few.stages,
        )
        at += len(one) + other_rows
