"""Weights in groups, read inside a kernel: dequantised in registers, never in memory."""

import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.groupwise.matrices import GroupwiseMatrices


def stored(matrices: GroupwiseMatrices) -> tuple[tuple[Tensor, ...], str]:
    """Return the five parts a kernel is given, and the name of their format.

    The name is read by `_field`, when a kernel is compiled. Of parts that are not there something
    else is given, which is never read.
    """
    parts = matrices.parts()
    assert all(part.is_contiguous() for part in parts.values())
    codes = parts["codes"]
    names = ("scales", "mins", "block_scales", "block_mins")
    kind = "mins" if matrices.mins is not None else "symmetric"
    if matrices.block_scales is None:
        kind = "e2m1"
    name = f"groupwise {matrices.bits} {matrices.group} {matrices.block} {kind}"
    return (codes, *(parts.get(name, codes) for name in names)), name


def is_groupwise(format_name: str) -> bool:
    """Tell whether `stored` gave this name."""
    return format_name.startswith("groupwise")


IS_GROUPWISE = triton.constexpr_function(is_groupwise)


@triton.constexpr_function
def _field(format_name: str, number: int) -> int:
    return int(format_name.split()[number])


@triton.constexpr_function
def _kind(format_name: str) -> str:
    return format_name.split()[4]


@triton.constexpr_function
def _run(format_name: str, columns: int) -> int:
    """Columns that share a scale wherever they begin, a power of two."""
    group = int(format_name.split()[2])
    return min(group & -group, columns)


@triton.jit
def dequantised_tile(
    weights,
    i_matrix,
    o_r,  # [BR]: rows, in any order
    at,  # the first column, a multiple of BC
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FORMAT: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """Some columns of rows of a matrix: [BR, BC] fp32, exact; beyond the last column 0."""
    BITS: tl.constexpr = _field(FORMAT, 1)
    GROUP: tl.constexpr = _field(FORMAT, 2)
    BLOCK: tl.constexpr = _field(FORMAT, 3)
    KIND: tl.constexpr = _kind(FORMAT)
    RUN: tl.constexpr = _run(FORMAT, BC)
    CODES: tl.constexpr = 8 // BITS  # in a byte
    row = i_matrix.to(tl.int64) * ROWS + o_r
    o_run = at // RUN + tl.arange(0, BC // RUN)
    m_run = (o_run < COLUMNS // RUN)[None, :]
    at_group = row[:, None] * (COLUMNS // GROUP) + (o_run * RUN // GROUP)[None, :]
    at_block = row[:, None] * (COLUMNS // BLOCK) + (o_run * RUN // BLOCK)[None, :]
    o_byte = at // CODES + tl.arange(0, BC // CODES)
    p_codes = (weights[0] + row * (COLUMNS // CODES))[:, None] + o_byte[None, :]
    b = tl.load(p_codes, mask=(o_byte < COLUMNS // CODES)[None, :], other=0)
    if BITS == 4:
        b = tl.reshape(tl.join(b & 15, b >> 4), [BR, BC])
    b_scale = tl.load(weights[1] + at_group, mask=m_run, other=0)
    if KIND == "e2m1":
        b_w = _twice_e2m1(b)
        b_scale = _half_power_of_two(b_scale)
    else:
        b_w = b.to(tl.float32)
        b_block = tl.load(weights[3] + at_block, mask=m_run, other=0.0)
        b_scale = b_scale.to(tl.float32) * b_block.to(tl.float32)
    b_w = tl.reshape(b_w, [BR, BC // RUN, RUN]) * b_scale[:, :, None]
    if KIND == "mins":
        b_min = tl.load(weights[2] + at_group, mask=m_run, other=0).to(tl.float32)
        b_min *= tl.load(weights[4] + at_block, mask=m_run, other=0.0).to(tl.float32)
        b_w -= b_min[:, :, None]
    return tl.reshape(b_w, [BR, BC])


@triton.jit
def _twice_e2m1(codes):
    """Sign, exponent and mantissa, moved to where fp16 has its own, are worth 2^-14 of e2m1's."""
    c = codes.to(tl.int16)
    bits = ((c & 8) << 12) | ((c & 7) << 9)
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * 32768.0


@triton.jit
def _half_power_of_two(exponents):
    """2^(e - 128) fp32 of E8M0's e, subnormal numbers too."""
    e = exponents.to(tl.int32)
    bits = tl.where(e == 0, 0x200000, tl.where(e == 1, 0x400000, (e - 1) << 23))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def tile_product(
    p_x,  # [*, COLUMNS]
    stride,
    o_m,  # [BM]: which activations
    weights,
    i_matrix,
    o_r,  # [BN]: which rows
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FORMAT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Activations times rows of a matrix: [BM, BN] fp32.

    Weights are the first operand: warps share out its rows, and each holds all of the second, so
    that no weight is dequantised twice.
    """
    o_k = tl.arange(0, BK)
    p_x = (p_x + o_m.to(tl.int64) * stride)[:, None] + o_k[None, :]
    acc = tl.zeros([BN, BM], dtype=tl.float32)
    for at in range(0, COLUMNS, BK):
        b_x = tl.load(p_x + at, mask=(at + o_k < COLUMNS)[None, :], other=0.0)
        b_x = b_x.to(tl.float32).to(OPERAND)
        b_w = dequantised_tile(weights, i_matrix, o_r, at, ROWS, COLUMNS, FORMAT, BN, BK)
        acc = tl.dot(b_w.to(OPERAND), tl.trans(b_x), acc, input_precision="ieee")
    return tl.trans(acc)
