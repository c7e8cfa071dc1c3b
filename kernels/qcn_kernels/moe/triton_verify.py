"""Experts of a few tokens that are verified together, on a GPU: each that is chosen is read once.

Drafted tokens choose alike more often than chance would have it. A program of the first product has
some rows of one expert and multiplies them by all the tokens at once, on tensor cores, which take
16 whether asked or not; of what comes out it keeps what belongs to tokens that chose the expert.
Programs of an expert that an earlier pair of token and expert has asked for end at once. The second
product is decode's: what a token's programs read, those of the next ones find in L2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import INTERPRETED, OPERAND
from qcn_kernels.fp8.matrices import BLOCK
from qcn_kernels.groupwise.triton import is_groupwise
from qcn_kernels.matrices import Matrices
from qcn_kernels.matrices.triton import _e4m3, _scales, stored
from qcn_kernels.moe import triton as moe
from qcn_kernels.moe.shared import SharedExpert

ROWS, WARPS, STAGES = 16, 4, 3  # of gate, and as many of up; a warp has columns of its own


@triton.jit
def _product(b_w, b_x, acc, p_scales, i_expert, i_row, o_scale, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr, FORMAT: tl.constexpr, OPERAND: tl.constexpr):  # fmt: skip
    """Some columns of rows times tokens, added up for each warp: [SPLITS, BR, BT]."""
    if FORMAT == "plain":
        acc = tl.dot(b_w.to(tl.float32).to(OPERAND), b_x, acc, input_precision="ieee")
    else:
        b_part = tl.dot(_e4m3(b_w, FORMAT).to(OPERAND), b_x, input_precision="ieee")
        b_scale = _scales(p_scales, i_expert, i_row, o_scale, ROWS, COLUMNS, FORMAT)
        acc += b_part * b_scale[:, None, None]
    return acc


@triton.jit(do_not_specialize=["tokens"])
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
    o_t, o_slot = tl.arange(0, BT), tl.arange(0, PADDED)
    o_pair = o_t[:, None] * SLOTS + o_slot[None, :]
    m_pair = (o_t < tokens)[:, None] & (o_slot < SLOTS)[None, :]
    b_chosen = tl.load(p_chosen + o_pair, mask=m_pair, other=-1)
    here = tl.min(tl.where(b_chosen == i_expert, o_pair, BT * SLOTS), axis=1)  # a token's pair
    if tl.min(here, axis=0) == i_pair:
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
    if is_groupwise(format_name) or (whole and not INTERPRETED):
        moe.experts_step(
            x, weights=weights, chosen=chosen, gate_up=gate_up, down=down, shared=shared, to=to
        )
        return
    moe._check(x, weights, chosen, gate_up, down)
    tokens, slots = chosen.shape
    _, hidden, intermediate = down.shape
    assert tokens <= moe.MOST_STEP_TOKENS
    between = x.new_empty(tokens, slots, intermediate, dtype=torch.float32)
    _gate_up_few[(tokens * slots, triton.cdiv(intermediate, ROWS))](
        x,
        chosen,
        matrices,
        between,
        tokens,
        x.stride(0),
        SLOTS=slots,
        PADDED=triton.next_power_of_2(slots),
        HIDDEN=hidden,
        INTERMEDIATE=intermediate,
        FORMAT=format_name,
        SPLITS=WARPS,
        BT=moe.MOST_STEP_TOKENS,
        BR=ROWS,
        BC=BLOCK,
        OPERAND=OPERAND,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    moe._add_down_step(between, weights, chosen, down, shared, to, added=True)
