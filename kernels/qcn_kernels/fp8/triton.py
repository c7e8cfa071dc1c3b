"""Activations to FP8, and the linear layers of a prefill with block-FP8 weights, on a GPU.

It multiplies FP8 by FP8 where the chip does, 128 columns at a time, each such product scaled
into an fp32 sum; elsewhere the weight's bytes become bf16 in registers and activations stay bf16.
"""

from dataclasses import dataclass

import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import ALIGNED, configuration, empty_rows, some_columns
from qcn_kernels.fp8.matrices import BLOCK, Fp8Matrices
from qcn_kernels.fp8.quantised import Activations, Quantised, empty_quantised, plain
from qcn_kernels.launch import cdiv, kernel
from qcn_kernels.matrices.triton import (
    STEP,
    operand,
    quantised,
    stored,
    tile_products,
)


@dataclass(frozen=True, slots=True)
class Tile:
    """Tokens and rows of the weight of a program; columns are 128 at a time."""

    tokens: int
    rows: int
    warps: int
    stages: int


# No spills, and loads as far ahead as fits; that of a 90 is the fastest of those tried on an H200.
PREFILL = {
    80: Tile(128, 128, 8, 3),
    86: Tile(64, 128, 8, 3),
    89: Tile(64, 256, 8, 3),
    90: Tile(128, 256, 16, 4),
    120: Tile(64, 256, 8, 3),
}
# Where tiles as those are fewer than a chip has multiprocessors; they give the same bits.
SHORT_PREFILL = PREFILL | {90: Tile(64, 256, 8, 4)}
MULTIPROCESSORS = 132  # of an H100 or H200
BAND = 8  # tiles of tokens that share a weight's rows in L2
QUANTISED_ROWS = 32  # blocks of 128 a program


@kernel(do_not_specialize=["blocks"])
def _quantise(
    p_x,  # [T, COLUMNS]
    p_values,  # [T, COLUMNS] e4m3
    p_scales,  # [T, COLUMNS / 128] fp32
    blocks,  # of all tokens
    stride,
    COLUMNS: tl.constexpr,
    B: tl.constexpr,
):
    per_token: tl.constexpr = (COLUMNS + STEP - 1) // STEP
    o_block = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    i_t = (o_block // per_token)[:, None]
    o_c = (o_block % per_token * STEP)[:, None] + tl.arange(0, STEP)[None, :]
    mask = (o_block < blocks)[:, None] & (o_c < COLUMNS)
    b_x = tl.load(p_x + i_t * stride + o_c, mask=mask, other=0.0).to(tl.float32)
    b_values, b_scales = quantised(b_x)
    tl.store(p_values + i_t * COLUMNS + o_c, b_values, mask=mask)
    tl.store(p_scales + o_block, b_scales, mask=o_block < blocks)


@kernel(do_not_specialize=["tokens"])
def _linear(
    activations,
    weights,
    p_out,  # [T, STORED]
    tokens,
    stride,
    stride_out,
    ROWS: tl.constexpr,
    STORED: tl.constexpr,  # ROWS, and anything behind them up to a multiple of 16
    COLUMNS: tl.constexpr,
    FORMAT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BAND: tl.constexpr,
    OPERAND: tl.constexpr,
):
    i_tile = tl.program_id(0)
    row_tiles: tl.constexpr = (ROWS + BN - 1) // BN
    first_tile = i_tile // (BAND * row_tiles) * BAND
    height = tl.minimum((tokens + BM - 1) // BM - first_tile, BAND)
    i_in_band = i_tile % (BAND * row_tiles)
    o_t = (first_tile + i_in_band % height).to(tl.int64) * BM + tl.arange(0, BM)
    i_row = i_in_band // height * BN
    first, second = tile_products(
        activations,
        stride,
        tl.minimum(o_t, tokens - 1),
        weights,
        tl.full([], 0, tl.int32),
        i_row,
        BN // 2,
        ROWS,
        COLUMNS,
        FORMAT,
        BM,
        BN,
        BK,
        OPERAND,
    )
    o_r = i_row + tl.arange(0, BN // 2)
    here = (o_t < tokens)[:, None]
    p_out += o_t[:, None] * stride_out + o_r[None, :]
    tl.store(p_out, first.to(p_out.dtype.element_ty), mask=here & (o_r < STORED)[None, :])
    o_r += BN // 2
    tl.store(
        p_out + BN // 2, second.to(p_out.dtype.element_ty), mask=here & (o_r < STORED)[None, :]
    )


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return `reference.quantise` of x [T, columns] bf16 or fp32, columns without gaps.

    On the CPU, which has no e4m3 to multiply, only the interpreter comes here.
    """
    assert x.stride(1) == 1
    room = empty_quantised(x, BLOCK)
    blocks = room.scales.numel()
    _quantise[(cdiv(blocks, QUANTISED_ROWS),)](
        x,
        room.values,
        room.scales,
        blocks,
        x.stride(0),
        COLUMNS=x.shape[1],
        B=QUANTISED_ROWS,
        num_warps=4,
    )
    return room.values, room.scales


def activations(x: Activations, format_name: str) -> tuple[Tensor, ...]:
    """Return what `tile_products` is given for x [T, columns] beside weights of a format."""
    if format_name != "e4m3":
        return (plain(x),)
    return (x.values, x.scales) if isinstance(x, Quantised) else quantise(x)


def _tile_for(x: Tensor, rows: int) -> Tile:
    tile = configuration(PREFILL, x)
    programs = cdiv(x.shape[0], tile.tokens) * cdiv(rows, tile.rows)
    return tile if programs >= MULTIPROCESSORS else configuration(SHORT_PREFILL, x)


def linear(x: Activations, weight: Fp8Matrices, out: Tensor | None = None) -> Tensor:
    """Return `x · weightᵀ` in x's dtype, in `out` if given; x [T, columns] without inner gaps.

    `out` as for the `linear` of plain weights.
    """
    weights, format_name = stored(weight)
    given = activations(x, format_name)
    x = plain(x)
    tokens, columns = x.shape
    rows = len(weight)
    assert weight.shape == (rows, columns)
    assert x.stride(1) == 1
    tile = _tile_for(x, rows)
    out = empty_rows(x, rows) if out is None else out
    assert out.shape[0] == tokens
    assert rows <= out.shape[1] < rows + ALIGNED
    assert out.stride(1) == 1
    _linear[(cdiv(tokens, tile.tokens) * cdiv(rows, tile.rows),)](
        given,
        weights,
        out,
        tokens,
        given[0].stride(0),
        out.stride(0),
        ROWS=rows,
        STORED=out.shape[1],
        COLUMNS=columns,
        FORMAT=format_name,
        BM=tile.tokens,
        BN=tile.rows,
        BK=BLOCK,
        BAND=BAND,
        OPERAND=operand(format_name),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return some_columns(out, 0, rows)
