"""Experts whose weights are codes in groups, on a GPU: dequantised in registers, never in memory.

A program reads codes by units of 16 bytes, which lie under one scale: 32 columns of 4 bits (16 in
the low halves, the next 16 in the high) or 16 of 8. So a unit's scale and minimum are read once,
and the halves are multiplied with two runs of 16 columns of the activations, without shuffling.

Prefill sorts the (token, expert) pairs by expert, each expert's rows padded to whole tiles, and
multiplies tile by tile in bf16. A row of a tile does not depend on the others, nor does the order
in which a token's experts are added. Decode gives each pair of a few tokens programs of its own, in
fp32. What either launches depends on shapes alone: nothing waits for the device.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import OPERAND, STORED_OPERAND, configuration
from qcn_kernels.groupwise.matrices import GroupwiseMatrices

UNIT = 16  # bytes


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of activations, rows of weights, and units of columns at a time."""

    tokens: int
    rows: int
    units: int
    warps: int
    stages: int


# Chosen without hardware: the largest that spill nothing and fit.
PREFILL = {80: Tile(64, 64, 4, 4, 2), 120: Tile(64, 64, 4, 4, 2)}
STEP = {80: Tile(1, 8, 16, 4, 2)}


@triton.jit
def _unit_scales(p_scales, p_block_scales, at_scale, at_block, mask, MXFP4: tl.constexpr):
    """The factors [rows, units] fp32 of codes."""
    b_scale = tl.load(p_scales + at_scale, mask=mask, other=0)
    if MXFP4:
        e = b_scale.to(tl.int32)
        bits = tl.where(e == 0, 0x200000, tl.where(e == 1, 0x400000, (e - 1) << 23))
        return bits.to(tl.float32, bitcast=True)
    b_block = tl.load(p_block_scales + at_block, mask=mask, other=0.0)
    return b_scale.to(tl.float32) * b_block.to(tl.float32)


@triton.jit
def _levels(codes, MXFP4: tl.constexpr):
    """What codes stand for before they are scaled, fp32; of MXFP4 twice that."""
    if MXFP4:
        c = codes.to(tl.int32)
        k = c & 7
        size = tl.where(k < 4, k, tl.where(k < 6, 2 * k - 4, 4 * k - 16))
        return tl.where(c >= 8, -size, size).to(tl.float32)
    return codes.to(tl.float32)


@triton.jit
def _load_units(
    p_codes,
    p_scales,
    p_mins,
    p_block_scales,
    p_block_mins,
    row,  # [BN] int64, counted over all matrices of the stack
    m_row,
    unit,  # [BU]
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    MXFP4: tl.constexpr,
    MINS: tl.constexpr,
):
    """Codes [BN, BU, 16] as they are stored, and for each unit a factor and what is subtracted."""
    COLUMNS: tl.constexpr = 128 // BITS
    UNITS: tl.constexpr = K // COLUMNS
    mask = m_row[:, None] & (unit < UNITS)[None, :]
    column = unit * COLUMNS
    at_scale = row[:, None] * (K // GROUP) + (column // GROUP)[None, :]
    at_block = row[:, None] * (K // BLOCK) + (column // BLOCK)[None, :]
    scale = _unit_scales(p_scales, p_block_scales, at_scale, at_block, mask, MXFP4)
    least = scale  # where nothing is subtracted it is not read
    if MINS:
        least = tl.load(p_mins + at_scale, mask=mask, other=0).to(tl.float32)
        least *= tl.load(p_block_mins + at_block, mask=mask, other=0.0).to(tl.float32)
    at = row[:, None, None] * (UNITS * 16) + unit[None, :, None] * 16
    at += tl.arange(0, 16)[None, None, :]
    codes = tl.load(p_codes + at, mask=mask[:, :, None], other=0)
    return codes, scale[:, :, None], least[:, :, None]


@triton.jit
def _weights(
    codes,
    scale,
    least,
    HIGH: tl.constexpr,  # of two codes in a byte, which
    BITS: tl.constexpr,
    MXFP4: tl.constexpr,
    MINS: tl.constexpr,
):
    """Weights [BN, BU, 16] fp32, exact."""
    if BITS == 4:
        codes = codes >> 4 if HIGH else codes & 15
    weights = _levels(codes, MXFP4) * scale
    if MINS:
        weights -= least
    return weights


@triton.jit
def _load_columns(
    p_x,
    at_row,
    m_row,
    unit_0,
    K: tl.constexpr,
    BU: tl.constexpr,
    COLUMNS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Activations [rows, BU · 16] that belong to the codes of BU units, of one half."""
    o_k = tl.arange(0, BU * 16)
    column = (unit_0 + o_k // 16) * COLUMNS + HALF * 16 + o_k % 16
    mask = m_row[:, None] & (column < K)[None, :]
    return tl.load(p_x + at_row[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _dot(acc, b_x, weights, BN: tl.constexpr, BU: tl.constexpr, OPERAND: tl.constexpr):
    """Add the product of weights [BN, BU, 16] and activations [BT, BU · 16] to acc [BN, BT].

    Weights come first: warps share out the rows of the first operand and each hold all of the
    second, so that no weight is dequantised twice.
    """
    b_w = tl.reshape(weights, (BN, BU * 16)).to(OPERAND)
    return tl.dot(b_w, tl.trans(b_x.to(OPERAND)), acc)


@triton.jit(do_not_specialize=["tokens"])
def _gate_up(
    p_x,  # [T, K]
    p_pair,  # [padded] int32: the pair of a row of tiles; T · TOP_K and more for padding
    p_expert,  # [tiles] int32: the expert of a tile; EXPERTS for none
    p_codes,
    p_scales,
    p_mins,
    p_block_scales,
    p_block_mins,
    p_out,  # [padded, N] operands
    tokens,
    stride_x,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    N: tl.constexpr,  # rows of the gate, above as many of up
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    MXFP4: tl.constexpr,
    MINS: tl.constexpr,
    BT: tl.constexpr,
    BN: tl.constexpr,
    BU: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """silu(G x) · U x for one tile of rows, which are of one expert."""
    COLUMNS: tl.constexpr = 128 // BITS
    i_tile, i_n = tl.program_id(1), tl.program_id(0)
    expert = tl.load(p_expert + i_tile)
    if expert < EXPERTS:
        o_t = i_tile * BT + tl.arange(0, BT)
        token = tl.load(p_pair + o_t) // TOP_K
        m_t = token < tokens
        at_x = token.to(tl.int64) * stride_x
        o_n = i_n * BN + tl.arange(0, BN)
        m_n = o_n < N
        row = expert.to(tl.int64) * (2 * N) + o_n
        gate = tl.zeros([BN, BT], dtype=tl.float32)
        up = tl.zeros([BN, BT], dtype=tl.float32)
        for unit_0 in range(0, K // COLUMNS, BU):
            unit = unit_0 + tl.arange(0, BU)
            g, g_scale, g_least = _load_units(
                p_codes, p_scales, p_mins, p_block_scales, p_block_mins, row, m_n, unit,
                K, GROUP, BLOCK, BITS, MXFP4, MINS,
            )  # fmt: skip
            u, u_scale, u_least = _load_units(
                p_codes, p_scales, p_mins, p_block_scales, p_block_mins, row + N, m_n, unit,
                K, GROUP, BLOCK, BITS, MXFP4, MINS,
            )  # fmt: skip
            for half in tl.static_range(8 // BITS):
                b_x = _load_columns(p_x, at_x, m_t, unit_0, K, BU, COLUMNS, half)
                b_w = _weights(g, g_scale, g_least, half, BITS, MXFP4, MINS)
                gate = _dot(gate, b_x, b_w, BN, BU, OPERAND)
                b_w = _weights(u, u_scale, u_least, half, BITS, MXFP4, MINS)
                up = _dot(up, b_x, b_w, BN, BU, OPERAND)
        hidden = gate * tl.sigmoid(gate) * up
        at_out = o_t.to(tl.int64)[None, :] * N + o_n[:, None]
        tl.store(p_out + at_out, hidden.to(p_out.dtype.element_ty), mask=m_n[:, None])


@triton.jit(do_not_specialize=["pairs"])
def _down(
    p_x,  # [padded, K] operands
    p_pair,
    p_expert,
    p_codes,
    p_scales,
    p_mins,
    p_block_scales,
    p_block_mins,
    p_out,  # [pairs, N] operands
    pairs,
    EXPERTS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    MXFP4: tl.constexpr,
    MINS: tl.constexpr,
    BT: tl.constexpr,
    BN: tl.constexpr,
    BU: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """D h for one tile of rows; each goes to the place of its pair."""
    COLUMNS: tl.constexpr = 128 // BITS
    i_tile, i_n = tl.program_id(1), tl.program_id(0)
    expert = tl.load(p_expert + i_tile)
    if expert < EXPERTS:
        o_t = i_tile * BT + tl.arange(0, BT)
        pair = tl.load(p_pair + o_t)
        m_t = pair < pairs
        at_x = o_t.to(tl.int64) * K
        o_n = i_n * BN + tl.arange(0, BN)
        m_n = o_n < N
        row = expert.to(tl.int64) * N + o_n
        acc = tl.zeros([BN, BT], dtype=tl.float32)
        for unit_0 in range(0, K // COLUMNS, BU):
            unit = unit_0 + tl.arange(0, BU)
            codes, scale, least = _load_units(
                p_codes, p_scales, p_mins, p_block_scales, p_block_mins, row, m_n, unit,
                K, GROUP, BLOCK, BITS, MXFP4, MINS,
            )  # fmt: skip
            for half in tl.static_range(8 // BITS):
                b_x = _load_columns(p_x, at_x, m_t, unit_0, K, BU, COLUMNS, half)
                b_w = _weights(codes, scale, least, half, BITS, MXFP4, MINS)
                acc = _dot(acc, b_x, b_w, BN, BU, OPERAND)
        at_out = pair.to(tl.int64)[None, :] * N + o_n[:, None]
        mask = m_t[None, :] & m_n[:, None]
        tl.store(p_out + at_out, acc.to(p_out.dtype.element_ty), mask=mask)


@triton.jit
def _combine(p_x, p_weights, p_out, N: tl.constexpr, TOP_K: tl.constexpr, BN: tl.constexpr):
    """Add up the outputs of a token's experts [TOP_K, N], in the order they were chosen."""
    i_t = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros([BN], dtype=tl.float32)
    for i in range(TOP_K):
        at = i_t * TOP_K + i
        b_x = tl.load(p_x + at * N + o_n, mask=o_n < N, other=0.0).to(tl.float32)
        acc += tl.load(p_weights + at) * b_x
    tl.store(p_out + i_t * N + o_n, acc, mask=o_n < N)


@triton.jit
def _load_vector(p_x, unit, COLUMNS: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr):
    """One token's activations [1, BU, 16] fp32 that belong to the codes of units, of one half."""
    column = unit[None, :, None] * COLUMNS + HALF * 16 + tl.arange(0, 16)[None, None, :]
    return tl.load(p_x + column, mask=column < K, other=0.0).to(tl.float32)


@triton.jit
def _step_gate_up(
    p_x,  # [T, K]
    p_chosen,  # [T · TOP_K] int64
    p_codes,
    p_scales,
    p_mins,
    p_block_scales,
    p_block_mins,
    p_out,  # [T · TOP_K, N] fp32
    stride_x,
    TOP_K: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    MXFP4: tl.constexpr,
    MINS: tl.constexpr,
    BN: tl.constexpr,
    BU: tl.constexpr,
):
    """silu(G x) · U x of one token and one of its experts, BN rows of it."""
    COLUMNS: tl.constexpr = 128 // BITS
    i_pair = tl.program_id(1)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_n = o_n < N
    row = tl.load(p_chosen + i_pair) * (2 * N) + o_n
    p_x += (i_pair // TOP_K).to(tl.int64) * stride_x
    gate = tl.zeros([BN, BU, 16], dtype=tl.float32)
    up = tl.zeros([BN, BU, 16], dtype=tl.float32)
    for unit_0 in range(0, K // COLUMNS, BU):
        unit = unit_0 + tl.arange(0, BU)
        g, g_scale, g_least = _load_units(
            p_codes, p_scales, p_mins, p_block_scales, p_block_mins, row, m_n, unit,
            K, GROUP, BLOCK, BITS, MXFP4, MINS,
        )  # fmt: skip
        u, u_scale, u_least = _load_units(
            p_codes, p_scales, p_mins, p_block_scales, p_block_mins, row + N, m_n, unit,
            K, GROUP, BLOCK, BITS, MXFP4, MINS,
        )  # fmt: skip
        for half in tl.static_range(8 // BITS):
            b_x = _load_vector(p_x, unit, COLUMNS, K, half)
            gate += _weights(g, g_scale, g_least, half, BITS, MXFP4, MINS) * b_x
            up += _weights(u, u_scale, u_least, half, BITS, MXFP4, MINS) * b_x
    b_gate = tl.sum(tl.reshape(gate, (BN, BU * 16)), axis=1)
    b_up = tl.sum(tl.reshape(up, (BN, BU * 16)), axis=1)
    hidden = b_gate * tl.sigmoid(b_gate) * b_up
    tl.store(p_out + i_pair.to(tl.int64) * N + o_n, hidden, mask=m_n)


@triton.jit
def _step_down(
    p_x,  # [T · TOP_K, K] fp32
    p_chosen,
    p_weights,  # [T · TOP_K] fp32
    p_codes,
    p_scales,
    p_mins,
    p_block_scales,
    p_block_mins,
    p_out,  # [T, N] fp32
    TOP_K: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    MXFP4: tl.constexpr,
    MINS: tl.constexpr,
    BN: tl.constexpr,
    BU: tl.constexpr,
):
    """The weighted sum over a token's experts, BN rows of it."""
    COLUMNS: tl.constexpr = 128 // BITS
    i_t = tl.program_id(1)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_n = o_n < N
    acc = tl.zeros([BN, BU, 16], dtype=tl.float32)
    for i in range(TOP_K):
        pair = (i_t * TOP_K + i).to(tl.int64)
        row = tl.load(p_chosen + pair) * N + o_n
        weight = tl.load(p_weights + pair)
        for unit_0 in range(0, K // COLUMNS, BU):
            unit = unit_0 + tl.arange(0, BU)
            codes, scale, least = _load_units(
                p_codes, p_scales, p_mins, p_block_scales, p_block_mins, row, m_n, unit,
                K, GROUP, BLOCK, BITS, MXFP4, MINS,
            )  # fmt: skip
            for half in tl.static_range(8 // BITS):
                b_x = _load_vector(p_x + pair * K, unit, COLUMNS, K, half) * weight
                acc += _weights(codes, scale, least, half, BITS, MXFP4, MINS) * b_x
    b_out = tl.sum(tl.reshape(acc, (BN, BU * 16)), axis=1)
    tl.store(p_out + i_t.to(tl.int64) * N + o_n, b_out, mask=m_n)


def experts(
    x: Tensor,
    *,
    weights: Tensor,
    chosen: Tensor,
    gate_up: GroupwiseMatrices,
    down: GroupwiseMatrices,
) -> Tensor:
    """Run T tokens of a prefill through their experts; see `qcn_kernels.moe.experts`.

    Args:
        x: [T, hidden] bf16 or fp32, rows without gaps.
        weights: [T, top_k] fp32.
        chosen: [T, top_k] int64.
        gate_up: [experts, 2 · intermediate, hidden].
        down: [experts, hidden, intermediate].

    Returns:
        [T, hidden] fp32.
    """
    _check(x, weights, chosen, gate_up, down)
    tokens, top_k = chosen.shape
    count, hidden, size = down.shape
    tile = configuration(PREFILL, x)
    pair, expert = _tiles(chosen, count, tile.tokens)
    between = x.new_empty(len(pair), size, dtype=STORED_OPERAND)
    _gate_up[(triton.cdiv(size, tile.rows), len(expert))](
        x,
        pair,
        expert,
        *_pointers(gate_up),
        between,
        tokens,
        x.stride(0),
        EXPERTS=count,
        TOP_K=top_k,
        N=size,
        **_constants(gate_up),
        BT=tile.tokens,
        BN=tile.rows,
        BU=tile.units,
        OPERAND=OPERAND,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    outputs = x.new_empty(tokens * top_k, hidden, dtype=STORED_OPERAND)
    _down[(triton.cdiv(hidden, tile.rows), len(expert))](
        between,
        pair,
        expert,
        *_pointers(down),
        outputs,
        tokens * top_k,
        EXPERTS=count,
        N=hidden,
        **_constants(down),
        BT=tile.tokens,
        BN=tile.rows,
        BU=tile.units,
        OPERAND=OPERAND,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    out = x.new_empty(tokens, hidden, dtype=torch.float32)
    block = min(1024, triton.next_power_of_2(hidden))
    _combine[(tokens, triton.cdiv(hidden, block))](
        outputs, weights, out, N=hidden, TOP_K=top_k, BN=block, num_warps=4
    )
    return out


def experts_step(
    x: Tensor,
    *,
    weights: Tensor,
    chosen: Tensor,
    gate_up: GroupwiseMatrices,
    down: GroupwiseMatrices,
) -> Tensor:
    """The same for one token [hidden], or a few; activations stay as they are, sums are fp32."""
    if x.ndim == 1:
        arguments = {"weights": weights.unsqueeze(0), "chosen": chosen.unsqueeze(0)}
        return experts_step(x.unsqueeze(0), **arguments, gate_up=gate_up, down=down).squeeze(0)
    _check(x, weights, chosen, gate_up, down)
    tokens, top_k = chosen.shape
    _, hidden, size = down.shape
    tile = configuration(STEP, x)
    between = x.new_empty(tokens * top_k, size, dtype=torch.float32)
    _step_gate_up[(triton.cdiv(size, tile.rows), tokens * top_k)](
        x,
        chosen,
        *_pointers(gate_up),
        between,
        x.stride(0),
        TOP_K=top_k,
        N=size,
        **_constants(gate_up),
        BN=tile.rows,
        BU=tile.units,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    out = x.new_empty(tokens, hidden, dtype=torch.float32)
    _step_down[(triton.cdiv(hidden, tile.rows), tokens)](
        between,
        chosen,
        weights,
        *_pointers(down),
        out,
        TOP_K=top_k,
        N=hidden,
        **_constants(down),
        BN=tile.rows,
        BU=tile.units,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def _tiles(chosen: Tensor, experts: int, rows: int) -> tuple[Tensor, Tensor]:
    """Sort pairs by expert, each expert's padded to whole tiles; nothing waits for the device.

    Returns:
        The pair of each row, int32, their number and more for padding; and the expert of each tile,
        int32, `experts` for those that are left over: there are as many as could be needed.
    """
    pairs = chosen.numel()
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    counts = torch.zeros(experts, dtype=torch.int64, device=chosen.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    tiles = (counts + rows - 1) // rows
    ends = tiles.cumsum(0)
    starts = (ends - tiles) * rows - (counts.cumsum(0) - counts)
    most = min(pairs, pairs // rows + experts)
    pair = torch.full((most * rows,), pairs, dtype=torch.int32, device=chosen.device)
    places = torch.arange(pairs, device=chosen.device) + starts[flat[order]]
    pair.scatter_(0, places, order.to(torch.int32))
    numbers = torch.arange(most, device=chosen.device)
    return pair, torch.searchsorted(ends, numbers, right=True).to(torch.int32)


def _pointers(matrices: GroupwiseMatrices) -> tuple[Tensor, ...]:
    """Return all five parts; those that are not there are never read."""
    parts = matrices.parts()
    codes = parts["codes"]
    names = ("scales", "mins", "block_scales", "block_mins")
    return codes, *(parts.get(name, codes) for name in names)


def _constants(matrices: GroupwiseMatrices) -> dict[str, int | bool]:
    return {
        "K": matrices.columns,
        "GROUP": matrices.group,
        "BLOCK": matrices.block,
        "BITS": matrices.bits,
        "MXFP4": matrices.block_scales is None,
        "MINS": matrices.mins is not None,
    }


def _check(
    x: Tensor, weights: Tensor, chosen: Tensor, gate_up: GroupwiseMatrices, down: GroupwiseMatrices
) -> None:
    count, hidden, size = down.shape
    assert gate_up.shape == (count, 2 * size, hidden)
    assert x.shape == (len(chosen), hidden)
    assert x.stride(1) == 1
    assert weights.shape == chosen.shape
    assert weights.is_contiguous()
    assert chosen.is_contiguous()
    assert weights.dtype == torch.float32
    assert chosen.dtype == torch.int64
    for matrices in (gate_up, down):
        assert all(part.is_contiguous() for part in matrices.parts().values())
