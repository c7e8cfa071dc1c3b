"""Experts of a few tokens that are verified together, on a GPU: each that is chosen is read once.

Drafted tokens choose alike more often than chance would have it. A program has some rows of one
expert and multiplies them by all the tokens at once, on tensor cores, which take 16 whether asked
or not; of what comes out it keeps what belongs to tokens that chose the expert. Programs of an
expert that an earlier pair of token and expert has asked for end at once. The shared expert is one
more behind the pairs of the second product. A third launch adds the parts of a token up, in the
order in which its experts were chosen: nothing is added by atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import INTERPRETED, OPERAND
from qcn_kernels.fp8.matrices import BLOCK
from qcn_kernels.groupwise.triton import is_groupwise
from qcn_kernels.launch import cdiv, kernel, next_power_of_2
from qcn_kernels.matrices import Matrices
from qcn_kernels.matrices.triton import _scales, e4m3, stored
from qcn_kernels.moe.shapes import check_shapes
from qcn_kernels.moe.shared import SharedExpert
from qcn_kernels.moe.triton_step import MOST_STEP_TOKENS, experts_step

ROWS, WARPS, STAGES = 16, 4, 3  # of gate, and as many of up; a warp has columns of its own
DOWN_ROWS = 32
ADDED = 1024  # elements of a program that adds up


@triton.jit
def _product(b_w, b_x, acc, p_scales, i_expert, i_row, o_scale, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr, FORMAT: tl.constexpr, OPERAND: tl.constexpr):  # fmt: skip
    """Some columns of rows times tokens, added up for each warp: [SPLITS, BR, BT]."""
    if FORMAT == "plain":
        acc = tl.dot(b_w.to(tl.float32).to(OPERAND), b_x, acc, input_precision="ieee")
    else:
        b_part = tl.dot(e4m3(b_w, FORMAT).to(OPERAND), b_x, input_precision="ieee")
        b_scale = _scales(p_scales, i_expert, i_row, o_scale, ROWS, COLUMNS, FORMAT)
        acc += b_part * b_scale[:, None, None]
    return acc


@triton.jit
def _pairs_alike(p_chosen, i_expert, tokens, SLOTS: tl.constexpr, PADDED: tl.constexpr,
                 BT: tl.constexpr):  # fmt: skip
    """The pair of each token [BT] that has an expert; BT · SLOTS where it has not chosen it."""
    o_t, o_slot = tl.arange(0, BT), tl.arange(0, PADDED)
    o_pair = o_t[:, None] * SLOTS + o_slot[None, :]
    m_pair = (o_t < tokens)[:, None] & (o_slot < SLOTS)[None, :]
    b_chosen = tl.load(p_chosen + o_pair, mask=m_pair, other=-1)
    return tl.min(tl.where(b_chosen == i_expert, o_pair, BT * SLOTS), axis=1)


@kernel(do_not_specialize=["tokens"])
def _gate_up_few(
    p_x,  # [T, HIDDEN]
    p_chosen,  # [T, SLOTS] int64
    weights,  # [E, 2 · INTERMEDIATE, HIDDEN]
    p_hidden,  # [T, SLOTS, INTERMEDIATE] fp32
    tokens,
    stride,
    SLOTS: tl.constexpr,
    PADDED: tl.constexpr,  # SLOTS, as the next power of two
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    FORMAT: tl.constexpr,
    SPLITS: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """BR rows of gate and of up for all tokens that chose the expert of one pair."""
    i_pair = tl.program_id(0)
    i_expert = tl.load(p_chosen + i_pair)
    here = _pairs_alike(p_chosen, i_expert, tokens, SLOTS, PADDED, BT)
    if tl.min(here, axis=0) == i_pair:
        o_t = tl.arange(0, BT)
        AT_ONCE: tl.constexpr = SPLITS * BC
        ROWS: tl.constexpr = 2 * INTERMEDIATE
        i_row = tl.program_id(1) * BR
        o_i = i_row + tl.arange(0, BR)
        o_s, o_c = tl.arange(0, SPLITS) * BC, tl.arange(0, BC)
        o_w = o_s[:, None, None] + o_c[None, None, :]
        o_x = o_s[:, None, None] + o_c[None, :, None]
        o_row = i_expert * ROWS + tl.minimum(o_i, INTERMEDIATE - 1)
        p_gate = weights[0] + o_row[None, :, None] * HIDDEN + o_w
        p_up = p_gate + INTERMEDIATE * HIDDEN
        p_rows = p_x + o_t[None, None, :] * stride + o_x
        m_t = (o_t < tokens)[None, None, :]
        p_scales = weights[0]
        if FORMAT != "plain":
            p_scales = weights[1]
        gate = tl.zeros([SPLITS, BR, BT], dtype=tl.float32)
        up = tl.zeros([SPLITS, BR, BT], dtype=tl.float32)
        for at in range(0, HIDDEN, AT_ONCE):
            if HIDDEN % AT_ONCE == 0:
                b_gate, b_up = tl.load(p_gate + at), tl.load(p_up + at)
                b_x = tl.load(p_rows + at, mask=m_t, other=0.0)
            else:
                m_w = at + o_w < HIDDEN
                b_gate = tl.load(p_gate + at, mask=m_w, other=0.0)
                b_up = tl.load(p_up + at, mask=m_w, other=0.0)
                b_x = tl.load(p_rows + at, mask=m_t & (at + o_x < HIDDEN), other=0.0)
            b_x = b_x.to(tl.float32).to(OPERAND)
            o_scale = tl.minimum(at + o_s, HIDDEN - 1)
            gate = _product(b_gate, b_x, gate, p_scales, i_expert, i_row, o_scale, ROWS, HIDDEN,
                            FORMAT, OPERAND)  # fmt: skip
            up = _product(b_up, b_x, up, p_scales, i_expert, INTERMEDIATE + i_row, o_scale, ROWS,
                          HIDDEN, FORMAT, OPERAND)  # fmt: skip
        b_g = tl.sum(gate, axis=0)
        b_h = b_g * tl.sigmoid(b_g) * tl.sum(up, axis=0)
        p = p_hidden + here[None, :].to(tl.int64) * INTERMEDIATE + o_i[:, None]
        mask = (here < BT * SLOTS)[None, :] & (o_i < INTERMEDIATE)[:, None]
        tl.store(p, b_h, mask=mask)


@triton.jit
def _down_rows(
    p_x,  # [SPLITS, BC, BT]: where what is multiplied stands, and
    p_up,  # where it is a gate, the other half
    m_x,  # which of it there is
    b_factor,  # [BT]
    weights,
    i_matrix,
    i_row,
    p_out,  # [BT]: where each token's part goes
    m_t,  # [BT]
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    FORMAT: tl.constexpr,
    GATED: tl.constexpr,
    SPLITS: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """BR elements of a matrix times tokens, times a factor for each."""
    AT_ONCE: tl.constexpr = SPLITS * BC
    o_h = i_row + tl.arange(0, BR)
    o_s, o_c = tl.arange(0, SPLITS) * BC, tl.arange(0, BC)
    o_w = o_s[:, None, None] + o_c[None, None, :]
    o_x = o_s[:, None, None] + o_c[None, :, None]
    o_row = i_matrix.to(tl.int64) * HIDDEN + tl.minimum(o_h, HIDDEN - 1)
    p_w = weights[0] + o_row[None, :, None] * INTERMEDIATE + o_w
    p_scales = weights[0]
    if FORMAT != "plain":
        p_scales = weights[1]
    acc = tl.zeros([SPLITS, BR, BT], dtype=tl.float32)
    for at in range(0, INTERMEDIATE, AT_ONCE):
        m_here = m_x & (at + o_x < INTERMEDIATE)
        b_w = tl.load(p_w + at, mask=at + o_w < INTERMEDIATE, other=0.0)
        b_x = tl.load(p_x + at, mask=m_here, other=0.0).to(tl.float32)
        if GATED:
            b_x *= tl.sigmoid(b_x) * tl.load(p_up + at, mask=m_here, other=0.0).to(tl.float32)
        o_scale = tl.minimum(at + o_s, INTERMEDIATE - 1)
        acc = _product(b_w, b_x.to(OPERAND), acc, p_scales, i_matrix, i_row, o_scale, HIDDEN,
                       INTERMEDIATE, FORMAT, OPERAND)  # fmt: skip
    b_out = tl.sum(acc, axis=0) * b_factor[None, :]
    mask = m_t[None, :] & (o_h < HIDDEN)[:, None]
    tl.store(p_out[None, :] + o_h[:, None], b_out, mask=mask)


@kernel(do_not_specialize=["tokens", "pairs"])
def _down_few(
    p_hidden,  # [T, SLOTS, INTERMEDIATE] fp32
    p_chosen,  # [T, SLOTS] int64
    p_weights,  # [T, SLOTS] fp32
    weights,  # [E, HIDDEN, INTERMEDIATE]
    p_gate,  # [T] logits of the shared expert's gate
    p_gate_up,  # [T, 2 · SHARED]
    shared,  # [HIDDEN, SHARED]
    p_parts,  # [T, SLOTS + 1, HIDDEN] fp32
    tokens,
    pairs,
    stride_gate,
    stride_gate_up,
    SLOTS: tl.constexpr,
    PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    FORMAT: tl.constexpr,
    SHARED: tl.constexpr,
    SHARED_FORMAT: tl.constexpr,
    SPLITS: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """BR elements of what one pair's expert adds to all that chose it, or the shared one to all."""
    i_pair, i_row = tl.program_id(0), tl.program_id(1) * BR
    o_t = tl.arange(0, BT)
    o_x = tl.arange(0, SPLITS)[:, None, None] * BC + tl.arange(0, BC)[None, :, None]
    if i_pair < pairs:
        i_expert = tl.load(p_chosen + i_pair)
        here = _pairs_alike(p_chosen, i_expert, tokens, SLOTS, PADDED, BT)
        if tl.min(here, axis=0) == i_pair:
            m_t = here < BT * SLOTS
            p_x = p_hidden + here[None, None, :] * INTERMEDIATE + o_x
            b_factor = tl.load(p_weights + here, mask=m_t, other=0.0)
            p_out = p_parts + (here + o_t) * HIDDEN
            _down_rows(p_x, p_x, m_t[None, None, :], b_factor, weights, i_expert, i_row, p_out, m_t,
                       HIDDEN, INTERMEDIATE, FORMAT, False, SPLITS, BT, BR, BC,
                       OPERAND)  # fmt: skip
    else:
        m_all = o_t < tokens
        p_half = p_gate_up + o_t[None, None, :] * stride_gate_up + o_x
        b_gate = tl.load(p_gate + o_t * stride_gate, mask=m_all, other=0.0).to(tl.float32)
        p_last = p_parts + (o_t * (SLOTS + 1) + SLOTS) * HIDDEN
        one = tl.full([], 0, tl.int32)
        _down_rows(p_half, p_half + SHARED, m_all[None, None, :], tl.sigmoid(b_gate), shared, one,
                   i_row, p_last, m_all, HIDDEN, SHARED, SHARED_FORMAT, True, SPLITS, BT, BR, BC,
                   OPERAND)  # fmt: skip


@kernel()
def _add_parts(
    p_parts,  # [T, PARTS, HIDDEN] fp32
    p_to,  # [T, HIDDEN] fp32
    PARTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    B: tl.constexpr,
):
    i_t = tl.program_id(0)
    o_h = tl.program_id(1) * B + tl.arange(0, B)
    mask = o_h < HIDDEN
    acc = tl.load(p_to + i_t * HIDDEN + o_h, mask=mask, other=0.0)
    for part in tl.static_range(PARTS):
        acc += tl.load(p_parts + (i_t * PARTS + part) * HIDDEN + o_h, mask=mask, other=0.0)
    tl.store(p_to + i_t * HIDDEN + o_h, acc, mask=mask)


def add_experts_few(
    to: Tensor,
    x: Tensor,
    *,
    weights: Tensor,
    chosen: Tensor,
    gate_up: Matrices,
    down: Matrices,
    shared: SharedExpert,
) -> None:
    """Add a few tokens' experts to their residual stream; as `moe.add_experts_few`."""
    matrices, format_name = stored(gate_up)
    whole = format_name == "plain" and matrices[0].dtype == torch.float32
    given, down_format = stored(down)
    packed = is_groupwise(format_name) or is_groupwise(down_format)
    if packed or (whole and not INTERPRETED):
        experts_step(
            x, weights=weights, chosen=chosen, gate_up=gate_up, down=down, shared=shared, to=to
        )
        return
    check_shapes(x, weights, chosen, gate_up, down)
    tokens, slots = chosen.shape
    _, hidden, intermediate = down.shape
    assert tokens <= MOST_STEP_TOKENS
    between = x.new_empty(tokens, slots, intermediate, dtype=torch.float32)
    _gate_up_few[(tokens * slots, cdiv(intermediate, ROWS))](
        x,
        chosen,
        matrices,
        between,
        tokens,
        x.stride(0),
        SLOTS=slots,
        PADDED=next_power_of_2(slots),
        HIDDEN=hidden,
        INTERMEDIATE=intermediate,
        FORMAT=format_name,
        SPLITS=WARPS,
        BT=MOST_STEP_TOKENS,
        BR=ROWS,
        BC=BLOCK,
        OPERAND=OPERAND,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    one, shared_format = stored(shared.matrix)
    size = shared.gate_up.shape[1] // 2
    assert shared.matrix.shape == (hidden, size)
    assert shared.gate_up.stride(1) == 1
    assert to.shape == (tokens, hidden)
    assert to.dtype == torch.float32
    assert to.is_contiguous()
    parts = to.new_empty(tokens, slots + 1, hidden)
    _down_few[(tokens * slots + 1, cdiv(hidden, DOWN_ROWS))](
        between,
        chosen,
        weights,
        given,
        shared.gate,
        shared.gate_up,
        one,
        parts,
        tokens,
        tokens * slots,
        shared.gate.stride(0),
        shared.gate_up.stride(0),
        SLOTS=slots,
        PADDED=next_power_of_2(slots),
        HIDDEN=hidden,
        INTERMEDIATE=intermediate,
        FORMAT=down_format,
        SHARED=size,
        SHARED_FORMAT=shared_format,
        SPLITS=WARPS,
        BT=MOST_STEP_TOKENS,
        BR=DOWN_ROWS,
        BC=BLOCK,
        OPERAND=OPERAND,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    _add_parts[(tokens, cdiv(hidden, ADDED))](
        parts, to, PARTS=slots + 1, HIDDEN=hidden, B=ADDED, num_warps=4
    )
