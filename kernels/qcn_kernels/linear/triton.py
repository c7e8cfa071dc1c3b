"""A matrix product whose rows do not depend on how many there are.

A library picks a kernel, and with it the order of a sum, by the number of rows. Here a tile is of
one size whatever it holds, each of its sums runs over the columns from first to last, and nothing
is split or added up by atomics: a token's result is the same in every launch.
"""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import (
    ALIGNED,
    INTERPRETED,
    OPERAND,
    configuration,
    empty_rows,
    some_columns,
)
from qcn_kernels.launch import cdiv, kernel


@dataclass(frozen=True, slots=True)
class Tile:
    """Tokens and rows of the weight of a program, and columns that it reads at once."""

    tokens: int
    rows: int
    columns: int
    warps: int
    stages: int


# Chosen without hardware: no spills, and loads as far ahead as fits.
BF16 = {80: Tile(128, 128, 64, 8, 3), 86: Tile(128, 128, 32, 8, 3), 90: Tile(128, 128, 64, 8, 4)}
BF16[120] = BF16[86]
FP32 = Tile(32, 64, 32, 4, 2)  # for tests: no model of a size that matters is kept in fp32
BAND = 8  # tiles of tokens that share a weight's rows in L2


@kernel(do_not_specialize=["tokens"])
def _linear(
    p_x,  # [T, COLUMNS]
    p_weight,  # [ROWS, COLUMNS]
    p_bias,  # [ROWS]; p_weight where there is none
    p_out,  # [T, STORED]
    tokens,
    stride_x,
    stride_out,
    ROWS: tl.constexpr,
    STORED: tl.constexpr,  # ROWS, and zeros behind them up to a multiple of 16
    COLUMNS: tl.constexpr,
    BIASED: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BAND: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_tile = tl.program_id(0)
    row_tiles: tl.constexpr = (ROWS + BR - 1) // BR
    first = i_tile // (BAND * row_tiles) * BAND
    height = tl.minimum((tokens + BT - 1) // BT - first, BAND)
    i_in_band = i_tile % (BAND * row_tiles)
    o_t = (first + i_in_band % height).to(tl.int64) * BT + tl.arange(0, BT)
    o_r = (i_in_band // height).to(tl.int64) * BR + tl.arange(0, BR)
    o_c = tl.arange(0, BC)
    p_x += o_t[:, None] * stride_x
    p_weight += o_r[:, None] * COLUMNS
    acc = tl.zeros([BT, BR], dtype=tl.float32)
    for at in range(0, COLUMNS, BC):
        m_c = (at + o_c < COLUMNS)[None, :]
        b_x = tl.load(p_x + (at + o_c)[None, :], mask=m_c & (o_t < tokens)[:, None], other=0.0)
        b_w = tl.load(p_weight + (at + o_c)[None, :], mask=m_c & (o_r < ROWS)[:, None], other=0.0)
        b_x, b_w = b_x.to(OPERAND), b_w.to(OPERAND)
        acc += tl.dot(b_x, tl.trans(b_w), input_precision=PRECISION)
    if BIASED:
        acc += tl.load(p_bias + o_r, mask=o_r < ROWS, other=0.0).to(tl.float32)[None, :]
    mask = (o_t < tokens)[:, None] & (o_r < STORED)[None, :]
    p_out += o_t[:, None] * stride_out + o_r[None, :]
    tl.store(p_out, acc.to(p_out.dtype.element_ty), mask=mask)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Return `x · weightᵀ + bias` in x's dtype; x [T, columns], its columns without gaps.

    It is written to `out`, if that is given: a part of what `empty_rows` returned, up to its end
    if it is the last part.
    """
    tokens, columns = x.shape
    rows = weight.shape[0]
    assert weight.shape == (rows, columns)
    assert weight.dtype == x.dtype
    assert weight.is_contiguous()
    assert x.stride(1) == 1
    assert bias is None or bias.shape == (rows,)
    whole = x.dtype == torch.float32
    tile = FP32 if whole or INTERPRETED else configuration(BF16, x)
    out = empty_rows(x, rows) if out is None else out
    assert out.shape[0] == tokens
    assert rows <= out.shape[1] < rows + ALIGNED
    assert out.stride(1) == 1
    grid = (cdiv(tokens, tile.tokens) * cdiv(rows, tile.rows),)
    _linear[grid](
        x,
        weight,
        weight if bias is None else bias,
        out,
        tokens,
        x.stride(0),
        out.stride(0),
        ROWS=rows,
        STORED=out.shape[1],
        COLUMNS=columns,
        BIASED=bias is not None,
        BT=tile.tokens,
        BR=tile.rows,
        BC=tile.columns,
        BAND=BAND,
        OPERAND=tl.float32 if whole else OPERAND,
        PRECISION="ieee" if whole or INTERPRETED else "tf32",
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return some_columns(out, 0, rows)
