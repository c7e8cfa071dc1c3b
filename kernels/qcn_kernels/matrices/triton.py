"""Weights in the formats they are stored in, read and multiplied inside a kernel.

A kernel takes a stack of matrices as a tuple of tensors and the name of their format, which
`stored` gives. Two functions read them: `tile_products` for tensor cores, and `rows_of` for few
tokens. Another format is one more branch in `stored` and in these two, and nothing in the
kernels.

An element of a product is summed over the columns from first to last, in steps that the format
fixes: neither the tile's sizes nor what else is in it has a say in it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels import chip
from qcn_kernels.chip import INTERPRETED, OPERAND
from qcn_kernels.fp8 import reference
from qcn_kernels.fp8.matrices import BLOCK
from qcn_kernels.groupwise import GroupwiseMatrices
from qcn_kernels.groupwise import triton as groupwise
from qcn_kernels.groupwise.triton import IS_GROUPWISE, dequantised_tile
from qcn_kernels.groupwise.triton import tile_product as groupwise_tile_product
from qcn_kernels.matrices import Matrices

STEP = tl.constexpr(BLOCK)  # columns under one scale, of a weight and of an activation
MULTIPLIES_E4M3 = 89  # the first compute capability that does; e4m3 does not compile before it
LARGEST = tl.constexpr(reference.LARGEST)
SMALLEST = tl.constexpr(reference.SMALLEST)
MOST_BY_TURNS = tl.constexpr(128 * 128)  # sums of a tile whose unscaled products fit beside them
INTERPRETS = tl.constexpr(INTERPRETED)


def stored(matrices: Matrices) -> tuple[tuple[Tensor, ...], str]:
    """Return the tensors a kernel is given for some matrices, and their format's name.

    "plain" are bf16 or fp32. "e4m3" has scales beside its values; where the chip has no e4m3, the
    values are "bytes". Weights in groups have names of their own.
    """
    if isinstance(matrices, GroupwiseMatrices):
        return groupwise.stored(matrices)
    if isinstance(matrices, Tensor):
        assert matrices.is_contiguous()
        return (matrices,), "plain"
    values, scales = matrices.values, matrices.scale_inv
    assert values.is_contiguous()
    assert scales.is_contiguous()
    if chip.capability(values) < MULTIPLIES_E4M3:
        return (values.view(torch.uint8), scales), "bytes"
    return (values, scales), "e4m3"


def operand(format_name: str) -> Any:
    """Return the dtype of the operands of `tile_products`."""
    return tl.float8e4nv if format_name == "e4m3" and not INTERPRETED else OPERAND


@triton.jit
def e4m3(b, FORMAT: tl.constexpr):
    """Values of e4m3 as fp32, a 256th of them where they come as bytes.

    A byte's exponent and mantissa, moved to where fp16 has its own, are worth 2^-8 of what they
    were, numbers below the normal ones too. (The two bytes that are no number become 480.)
    """
    if FORMAT == "bytes":
        bits = (b.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -16385  # all but bit 14
        b = bits.to(tl.float16, bitcast=True)
    return b.to(tl.float32)


@triton.jit
def _scales(p_scales, i_matrix, i_row, o_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
            FORMAT: tl.constexpr):  # fmt: skip
    """What the values of `e4m3` are multiplied by, at a row and columns."""
    blocks: tl.constexpr = (COLUMNS + STEP - 1) // STEP
    size: tl.constexpr = (ROWS + STEP - 1) // STEP * blocks
    o_scale = tl.minimum(i_row, ROWS - 1) // STEP * blocks + o_column // STEP
    b = tl.load(p_scales + i_matrix.to(tl.int64) * size + o_scale)
    return b * 256.0 if FORMAT == "bytes" else b


@triton.constexpr_function
def run_of(columns: int) -> int:
    """Of columns read at once, how many lie together in a run; a run has one scale."""
    return min(columns, BLOCK)


@triton.jit
def run_columns(at, BC: tl.constexpr):
    """The BC columns from `at` on, in runs: [BC / RUN, RUN]."""
    RUN: tl.constexpr = run_of(BC)
    return at + tl.arange(0, BC // RUN)[:, None] * RUN + tl.arange(0, RUN)[None, :]


@triton.jit
def rows_of(
    weights,
    o_row,  # [R] int64: which rows, counted through all matrices
    at,  # the first column
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FORMAT: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """Some columns of rows [R, BC / RUN, RUN], for `values_of`, and scales, for `row_sums`.

    To be called in front of what loads activations. What is loaded first decides how all is laid
    out: a thread then multiplies the weights where it has loaded them, and activations, of which
    there are few, are exchanged. No barrier stands between loads of weights. They are loaded in two
    dimensions: of three, Triton 3.6 gives a thread columns of one row where it should have the same
    columns of all, and with them as many activations as weights in registers.
    """
    RUN: tl.constexpr = run_of(BC)
    b_scales = tl.full([1, 1], 1.0, tl.float32)
    if IS_GROUPWISE(FORMAT):
        one = tl.full([], 0, tl.int32)
        b_w = dequantised_tile(weights, one, o_row, at, ROWS, COLUMNS, FORMAT, R, BC)
        b_w = tl.reshape(b_w, [R, BC // RUN, RUN])
    else:
        o_c = (at + tl.arange(0, BC))[None, :]
        b_w = tl.load(weights[0] + o_row[:, None] * COLUMNS + o_c, mask=o_c < COLUMNS, other=0.0)
        b_w = tl.reshape(b_w, [R, BC // RUN, RUN])
        if FORMAT != "plain":
            o_run = tl.minimum(at + tl.arange(0, BC // RUN) * RUN, COLUMNS - 1)[None, :]
            i_row = (o_row % ROWS)[:, None]
            b_scales = _scales(weights[1], (o_row // ROWS)[:, None], i_row, o_run, ROWS, COLUMNS,
                               FORMAT)  # fmt: skip
    return b_w, b_scales


@triton.jit
def values_of(b_w, FORMAT: tl.constexpr):
    """What `rows_of` gave as fp32, without its scales.

    Apart from it, so that what waits to be multiplied takes no more registers than it has bytes.
    """
    if FORMAT == "e4m3" or FORMAT == "bytes":
        return e4m3(b_w, FORMAT)
    return b_w.to(tl.float32)


@triton.jit
def row_sums(b_products, b_scales, FORMAT: tl.constexpr):
    """The sums [R] of values of rows times activations [R, BC / RUN, RUN]."""
    b_sums = tl.sum(b_products, axis=2)
    if FORMAT == "e4m3" or FORMAT == "bytes":
        b_sums *= b_scales
    return tl.sum(b_sums, axis=1)


@triton.jit
def tile_products(
    activations,  # [*, COLUMNS], and for "e4m3" their scales [*, COLUMNS / 128] fp32
    stride,  # between activations
    o_m,  # [BM]: which activations
    weights,
    i_matrix,
    i_row,  # the first of BN / 2 rows, which lie in one block of 128 where there are scales
    APART: tl.constexpr,  # as many rows behind it is the first of as many others
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FORMAT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,  # 128 where there are scales
    OPERAND: tl.constexpr,
    HELD: tl.constexpr = False,  # whether those of "e4m3" are multiplied from registers
):
    """Activations times two runs of rows of a matrix: [BM, BN / 2] fp32 of each.

    A thread holds the same elements of both. Rows beyond the last are the last.
    """
    SCALED: tl.constexpr = FORMAT == "e4m3" or FORMAT == "bytes"
    if SCALED and BM * BN > MOST_BY_TURNS:
        first, second = _one_after_the_other(activations, stride, o_m, weights, i_matrix, i_row,
                                             APART, ROWS, COLUMNS, FORMAT, BM, BN // 2, BK,
                                             OPERAND, HELD)  # fmt: skip
    else:  # one product of rows that are taken by turns
        o_n = tl.arange(0, BN)
        o_r = tl.minimum(i_row + o_n // 2 + o_n % 2 * APART, ROWS - 1)
        if IS_GROUPWISE(FORMAT):
            acc = groupwise_tile_product(activations[0], stride, o_m, weights, i_matrix, o_r, ROWS,
                                         COLUMNS, FORMAT, BM, BN, BK, OPERAND)  # fmt: skip
        elif SCALED:
            acc = _scaled_product(activations, stride, o_m, weights, i_matrix, o_r, i_row, APART,
                                  ROWS, COLUMNS, FORMAT, BM, BN, BK, OPERAND,
                                  HELD)  # fmt: skip
        else:
            acc = _plain_product(activations[0], stride, o_m, weights[0], i_matrix, o_r, ROWS,
                                 COLUMNS, BM, BN, BK, OPERAND)  # fmt: skip
        first, second = tl.split(tl.reshape(acc, [BM, BN // 2, 2]))
    return first, second


@triton.jit
def _plain_product(
    p_x,
    stride,
    o_m,
    p_weights,
    i_matrix,
    o_r,  # [BN]: which rows
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OPERAND: tl.constexpr,
):
    o_k = tl.arange(0, BK)
    p_x += o_m[:, None].to(tl.int64) * stride
    p_w = p_weights + i_matrix.to(tl.int64) * (ROWS * COLUMNS) + o_r[:, None] * COLUMNS
    acc = tl.zeros([BM, BN], dtype=tl.float32)
    for at in range(0, COLUMNS, BK):
        b_x = _columns(p_x, at + o_k, COLUMNS, BK).to(tl.float32).to(OPERAND)
        b_w = _columns(p_w, at + o_k, COLUMNS, BK).to(tl.float32).to(OPERAND)
        acc = tl.dot(b_x, tl.trans(b_w), acc, input_precision="ieee")
    return acc


@triton.jit
def _scaled_product(
    activations,
    stride,
    o_m,
    weights,
    i_matrix,
    o_r,  # [BN]: which rows, of two blocks of 128 by turns
    i_row,
    APART: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FORMAT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OPERAND: tl.constexpr,
    HELD: tl.constexpr,
):
    o_k = tl.arange(0, BK)
    p_x = activations[0] + o_m[:, None].to(tl.int64) * stride
    p_w = weights[0] + i_matrix.to(tl.int64) * (ROWS * COLUMNS) + o_r[:, None] * COLUMNS
    of_first = (tl.arange(0, BN) % 2 == 0)[None, :]
    acc = tl.zeros([BM, BN], dtype=tl.float32)
    for at in range(0, COLUMNS, BK):
        b_w = _values(_columns(p_w, at + o_k, COLUMNS, BK), FORMAT, OPERAND)
        b_x = _activations(_columns(p_x, at + o_k, COLUMNS, BK), FORMAT, OPERAND)
        if HELD:
            b_x = _from_registers(b_x)
        b_scale, b_other = _both_scales(activations, o_m, weights, i_matrix, i_row, APART, at, ROWS,
                                        COLUMNS, FORMAT)  # fmt: skip
        b_product = tl.dot(b_x, tl.trans(b_w), input_precision="ieee")
        acc += b_product * tl.where(of_first, b_scale, b_other)
    return acc


@triton.jit
def _one_after_the_other(
    activations,
    stride,
    o_m,
    weights,
    i_matrix,
    i_row,
    APART: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FORMAT: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,  # rows of each
    BK: tl.constexpr,
    OPERAND: tl.constexpr,
    HELD: tl.constexpr,
):
    """As `_scaled_product`, in two: what is not scaled yet is of one alone and finds registers.

    Weights are asked for first: where they lie is known before which activations they meet.
    """
    o_k = tl.arange(0, BK)
    o_r = tl.arange(0, BR)
    p_w = weights[0] + i_matrix.to(tl.int64) * (ROWS * COLUMNS)
    if ROWS % (2 * BR) == 0:  # no row is beyond the last: addresses take less to compute
        p_first = p_w + (i_row + o_r)[:, None] * COLUMNS
        p_second = p_w + (i_row + APART + o_r)[:, None] * COLUMNS
    else:
        p_first = p_w + tl.minimum(i_row + o_r, ROWS - 1)[:, None] * COLUMNS
        p_second = p_w + tl.minimum(i_row + APART + o_r, ROWS - 1)[:, None] * COLUMNS
    p_x = activations[0] + o_m[:, None].to(tl.int64) * stride
    first = tl.zeros([BM, BR], dtype=tl.float32)
    second = tl.zeros([BM, BR], dtype=tl.float32)
    for at in range(0, COLUMNS, BK):
        b_first = _values(_columns(p_first, at + o_k, COLUMNS, BK), FORMAT, OPERAND)
        b_second = _values(_columns(p_second, at + o_k, COLUMNS, BK), FORMAT, OPERAND)
        b_x = _activations(_columns(p_x, at + o_k, COLUMNS, BK), FORMAT, OPERAND)
        if HELD:
            b_x = _from_registers(b_x)
        b_scale, b_other = _both_scales(activations, o_m, weights, i_matrix, i_row, APART, at, ROWS,
                                        COLUMNS, FORMAT)  # fmt: skip
        first += tl.dot(b_x, tl.trans(b_first), input_precision="ieee") * b_scale
        second += tl.dot(b_x, tl.trans(b_second), input_precision="ieee") * b_other
    return _as_it_is(first), _as_it_is(second)


@triton.jit
def _both_scales(activations, o_m, weights, i_matrix, i_row, APART: tl.constexpr, at,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr, FORMAT: tl.constexpr):  # fmt: skip
    """What products with the rows of both runs are multiplied by: [BM, 1], or one for all."""
    blocks: tl.constexpr = (COLUMNS + STEP - 1) // STEP
    b_scale = _scales(weights[1], i_matrix, i_row, at, ROWS, COLUMNS, FORMAT)
    b_other = _scales(weights[1], i_matrix, i_row + APART, at, ROWS, COLUMNS, FORMAT)
    if FORMAT == "e4m3":
        of_x = tl.load(activations[1] + o_m * blocks + at // STEP)[:, None]
        b_scale, b_other = b_scale * of_x, b_other * of_x
    return b_scale, b_other


@triton.jit
def _values(b_w, FORMAT: tl.constexpr, OPERAND: tl.constexpr):
    """Weights as operands, without their scales."""
    return b_w.to(OPERAND) if FORMAT == "e4m3" else e4m3(b_w, FORMAT).to(OPERAND)


@triton.jit
def _activations(b_x, FORMAT: tl.constexpr, OPERAND: tl.constexpr):
    return b_x.to(OPERAND) if FORMAT == "e4m3" else b_x.to(tl.float32).to(OPERAND)


@triton.jit
def _as_it_is(b):
    """The same fp32, of which the compiler knows nothing.

    What is made of a sum behind a loop would else change how its registers are given out within:
    some of them were spilled in every round.
    """
    if not INTERPRETS:
        b = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [b], dtype=tl.float32, is_pure=True, pack=1
        )
    return b


@triton.jit
def _from_registers(b):
    """The same values of a byte, which a 90's tensor cores then take from registers.

    Else they read them from shared memory for each product anew. Only what is computed is left in
    registers, so something is.
    """
    if not INTERPRETS:
        b = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [b], dtype=b.dtype, is_pure=True, pack=4
        )
    return b


@triton.jit
def _columns(p_rows, o_k, COLUMNS: tl.constexpr, BK: tl.constexpr):
    """Some columns of rows; beyond the last column 0."""
    if COLUMNS % BK == 0:
        return tl.load(p_rows + o_k[None, :])
    return tl.load(p_rows + o_k[None, :], mask=(o_k < COLUMNS)[None, :], other=0.0)


@triton.jit
def store_quantised(b_x, p_values, p_scales, o_row, o_column, mask, rows,
                    COLUMNS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """Leave some of [rows, COLUMNS] as `quantise` would: b_x [BR, BC] at [BR, 1] and [1, BC].

    BC is a power of two, at least 128, and a multiple of 128 begins it. Behind COLUMNS b_x is 0.
    """
    blocks: tl.constexpr = (COLUMNS + STEP - 1) // STEP
    b_values, b_scales = quantised(tl.reshape(b_x, [BR * (BC // STEP), STEP]))
    tl.store(p_values + o_row * COLUMNS + o_column, tl.reshape(b_values, [BR, BC]), mask=mask)
    o_block = tl.min(o_column, axis=1) // STEP + tl.arange(0, BC // STEP)
    m_block = (o_row < rows) & (o_block < blocks)[None, :]
    b_scales = tl.reshape(b_scales, [BR, BC // STEP])
    tl.store(p_scales + o_row * blocks + o_block[None, :], b_scales, mask=m_block)


@triton.jit
def quantised(b_x):
    """Rows [R, 128] fp32 as e4m3 and their scales [R]: the largest of a row becomes 448."""
    b_peak = tl.maximum(tl.max(tl.abs(b_x), axis=1), SMALLEST)
    b_x *= tl.div_rn(LARGEST, b_peak)[:, None]
    if INTERPRETS:  # its cast to e4m3 loses the carry
        b_x = _rounded(b_x)
    return b_x.to(tl.float8e4nv), tl.div_rn(b_peak, LARGEST)


@triton.jit
def _rounded(b_x):
    """The nearest value of e4m3 for each, of two as near the even one."""
    bits = b_x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000  # three bits of mantissa are left
    normal = bits.to(tl.float32, bitcast=True)
    below = (b_x + 24576.0) - 24576.0  # to multiples of 2^-9: the last bit of 1.5 * 2^14
    return tl.where(tl.abs(b_x) < 0.015625, below, normal)


@triton.jit
def e4m3_bytes(b_x):
    """The bytes of values of e4m3 nearest to fp32 ones up to 448: `e4m3` of bytes, backwards."""
    bits = (_rounded(b_x) * 0.00390625).to(tl.float16).to(tl.int16, bitcast=True)
    sign = (b_x.to(tl.int32, bitcast=True) >> 24) & 0x80  # also of what is rounded to 0
    return (((bits >> 7) & 0x7F).to(tl.int32) | sign).to(tl.uint8)
