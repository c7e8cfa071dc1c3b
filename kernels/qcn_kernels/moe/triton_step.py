"""Experts of a token that is decoded, or of a few, on a GPU: only those chosen are read.

One launch has a program for some rows of gate and up of one pair; the second one for some rows of
a token, which takes them of all its experts at once, the shared one too, and adds to the residual
stream.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import INTERPRETED
from qcn_kernels.groupwise.triton import is_groupwise
from qcn_kernels.launch import cdiv, kernel, next_power_of_2
from qcn_kernels.matrices import Matrices
from qcn_kernels.matrices.triton import row_sums, rows_of, run_columns, run_of, stored, values_of
from qcn_kernels.moe.shapes import check_shapes
from qcn_kernels.moe.shared import SharedExpert
from qcn_kernels.overlap.triton import await_previous, let_next_begin, overlapping
from qcn_kernels.rms_norm.normed import Normed

MOST_STEP_TOKENS = 16
DOWN_COLUMNS = 512  # at once, of all of a token's experts


@dataclass(frozen=True, slots=True)
class _Step:
    """What a program of decode takes at once: as many weights as registers hold."""

    gate_up_rows: int  # of gate, and as many of up
    gate_up_warps: int
    down_rows: int  # of each of a token's experts
    down_warps: int
    columns: int


PLAIN_STEP, FP8_STEP, GROUPWISE_STEP = (
    _Step(4, 4, 2, 4, 2048),
    _Step(8, 8, 4, 4, 2048),  # the fastest of nine and of seven on an H200, see README.md
    _Step(8, 8, 2, 8, 512),
)
INTERPRETED_STEP = _Step(128, 4, 64, 4, 2048)  # many cost no more there


def _step_of(format_name: str) -> _Step:
    if INTERPRETED:
        return INTERPRETED_STEP
    if is_groupwise(format_name):
        return GROUPWISE_STEP
    return PLAIN_STEP if format_name == "plain" else FP8_STEP


@kernel()
def _gate_up_step(
    p_x,  # [T, HIDDEN]
    p_scale,  # [HIDDEN] fp32, of the norm
    p_chosen,  # [T · SLOTS] int64
    weights,
    p_hidden,  # [T · SLOTS, INTERMEDIATE] fp32
    stride,
    eps,
    SLOTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    FORMAT: tl.constexpr,
    NORMED: tl.constexpr,  # whether x is still to be
    BR: tl.constexpr,
    BC: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """BR rows of gate and of up for one pair."""
    let_next_begin(OVERLAPS)
    await_previous(OVERLAPS)
    i_pair = tl.program_id(1)
    i_expert = tl.load(p_chosen + i_pair)
    o_i = tl.program_id(0) * BR + tl.arange(0, BR)
    ROWS: tl.constexpr = 2 * INTERMEDIATE
    o_r = tl.arange(0, 2 * BR)  # BR of gate, then BR of up
    o_r = tl.minimum(tl.program_id(0) * BR + o_r % BR, INTERMEDIATE - 1) + o_r // BR * INTERMEDIATE
    o_row = i_expert.to(tl.int64) * ROWS + o_r
    both = tl.zeros([2 * BR], dtype=tl.float32)
    square = tl.zeros([], dtype=tl.float32)
    p_x += i_pair // SLOTS * stride
    for at in tl.static_range(0, HIDDEN, BC):
        b_w, b_scales = rows_of(weights, o_row, at, ROWS, HIDDEN, FORMAT, 2 * BR, BC)
        o = run_columns(at, BC)
        b_x = tl.load(p_x + o, mask=o < HIDDEN, other=0.0).to(tl.float32)
        if NORMED:
            b_scale = tl.load(p_scale + o, mask=o < HIDDEN, other=0.0)
            square += tl.sum(tl.sum(b_x * b_x, axis=1), axis=0)
            b_x *= b_scale
        both += row_sums(values_of(b_w, FORMAT) * b_x[None, :, :], b_scales, FORMAT)
    b_gate, b_up = tl.split(tl.trans(tl.reshape(both, [2, BR])))
    if NORMED:
        root = tl.rsqrt(square / HIDDEN + eps)
        b_gate, b_up = b_gate * root, b_up * root
    b_h = b_gate * tl.sigmoid(b_gate) * b_up
    tl.store(p_hidden + i_pair * INTERMEDIATE + o_i, b_h, mask=o_i < INTERMEDIATE)


@triton.jit
def _shared_down(p_gate, p_gate_up, b_first, b_first_scales, weights, i_row, HIDDEN: tl.constexpr,
                 SHARED: tl.constexpr, FORMAT: tl.constexpr, BR: tl.constexpr,
                 BC: tl.constexpr):  # fmt: skip
    """BR elements of the shared expert's output, behind its gate; BC columns are read already."""
    b_out = tl.zeros([BR], dtype=tl.float32)
    for at in tl.static_range(0, SHARED, BC):
        b_w, b_scales = b_first, b_first_scales
        if at > 0:
            b_w, b_scales = rows_of(weights, i_row.to(tl.int64), at, HIDDEN, SHARED, FORMAT, BR, BC)
        o = run_columns(at, BC)
        b_gate = tl.load(p_gate_up + o, mask=o < SHARED, other=0.0).to(tl.float32)
        b_up = tl.load(p_gate_up + SHARED + o, mask=o < SHARED, other=0.0).to(tl.float32)
        b_x = b_gate * tl.sigmoid(b_gate) * b_up
        b_out += row_sums(values_of(b_w, FORMAT) * b_x[None, :, :], b_scales, FORMAT)
    return b_out * tl.sigmoid(tl.load(p_gate).to(tl.float32))


@triton.jit
def _rows_of_slots(p_chosen, i_row, BR: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr,
                   HIDDEN: tl.constexpr):  # fmt: skip
    """Where rows [BR] of the experts of COUNT slots are, through all experts: [BR · PADDED]."""
    i_expert = tl.load(p_chosen + tl.minimum(tl.arange(0, PADDED), COUNT - 1))
    return tl.reshape(i_row[:, None] + (i_expert * HIDDEN)[None, :], [BR * PADDED])


@triton.jit
def _hidden(p_hidden, p_weights, at, COUNT: tl.constexpr, PADDED: tl.constexpr,
            INTERMEDIATE: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """Columns from `at` on of what COUNT slots' experts are given, weighted: [PADDED, BC] fp32."""
    o_slot = tl.arange(0, PADDED)
    i_slot = tl.minimum(o_slot, COUNT - 1)
    o = (at + tl.arange(0, BC))[None, :]
    b_x = tl.load(p_hidden + i_slot[:, None] * INTERMEDIATE + o, mask=o < INTERMEDIATE, other=0.0)
    return b_x * tl.where(o_slot < COUNT, tl.load(p_weights + i_slot), 0.0)[:, None]


@triton.jit
def _parts(b_w, b_scales, b_x, FORMAT: tl.constexpr, PADDED: tl.constexpr, BR: tl.constexpr,
           BC: tl.constexpr):  # fmt: skip
    """What some columns of some slots' experts add to BR elements."""
    RUN: tl.constexpr = run_of(BC)
    b_x = tl.reshape(b_x, [PADDED, BC // RUN, RUN])
    b_w = tl.reshape(values_of(b_w, FORMAT), [BR, PADDED, BC // RUN, RUN])
    b_y = tl.reshape(b_w * b_x[None, :, :, :], [BR * PADDED, BC // RUN, RUN])
    return tl.sum(tl.reshape(row_sums(b_y, b_scales, FORMAT), [BR, PADDED]), axis=1)


@kernel()
def _down_step(
    p_hidden,  # [T, SLOTS, INTERMEDIATE] fp32
    p_chosen,  # [T, SLOTS] int64
    p_weights,  # [T, SLOTS] fp32
    weights,
    p_gate,  # [T] logits of the shared expert's gate
    p_gate_up,  # [T, 2 · SHARED]
    shared,  # [HIDDEN, SHARED]
    p_out,  # [T, HIDDEN] fp32
    stride_gate,
    stride_gate_up,
    stride_out,
    SLOTS: tl.constexpr,
    MANY: tl.constexpr,  # of them at once, a power of two, and then the others,
    PADDED: tl.constexpr,  # as the next power of two
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    FORMAT: tl.constexpr,
    SHARED: tl.constexpr,  # intermediate size of the shared expert, 0 where there is none
    SHARED_FORMAT: tl.constexpr,
    ADDED: tl.constexpr,  # whether to what the output holds
    BR: tl.constexpr,
    BC: tl.constexpr,
    BS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """BR elements of one token: all its experts' parts at once, and the shared one's."""
    let_next_begin(OVERLAPS)
    i_t = tl.program_id(1)
    o_h = tl.program_id(0) * BR + tl.arange(0, BR)
    i_row = tl.minimum(o_h, HIDDEN - 1)
    if SHARED > 0:
        b_s, b_s_scales = rows_of(shared, i_row.to(tl.int64), 0, HIDDEN, SHARED, SHARED_FORMAT, BR,
                                  BS)  # fmt: skip
    p_chosen += i_t * SLOTS
    await_previous(OVERLAPS)
    p_hidden += i_t * SLOTS * INTERMEDIATE
    p_weights += i_t * SLOTS
    REST: tl.constexpr = SLOTS - MANY
    p_rest, p_rest_weights = p_hidden + MANY * INTERMEDIATE, p_weights + MANY
    p_out += i_t * stride_out + o_h
    b_out = tl.zeros([BR], dtype=tl.float32)
    if ADDED:
        b_out += tl.load(p_out, mask=o_h < HIDDEN, other=0.0)
    o_row = _rows_of_slots(p_chosen, i_row, BR, MANY, MANY, HIDDEN)
    b_w, b_scales = rows_of(weights, o_row, 0, HIDDEN, INTERMEDIATE, FORMAT, BR * MANY, BC)
    if REST > 0:
        o_other = _rows_of_slots(p_chosen + MANY, i_row, BR, REST, PADDED, HIDDEN)
        b_v, b_others = rows_of(weights, o_other, 0, HIDDEN, INTERMEDIATE, FORMAT, BR * PADDED, BC)
        b_y = _hidden(p_rest, p_rest_weights, 0, REST, PADDED, INTERMEDIATE, BC)
    b_x = _hidden(p_hidden, p_weights, 0, MANY, MANY, INTERMEDIATE, BC)
    if SHARED > 0:  # while those are on their way
        b_out += _shared_down(p_gate + i_t * stride_gate, p_gate_up + i_t * stride_gate_up, b_s,
                              b_s_scales, shared, i_row, HIDDEN, SHARED, SHARED_FORMAT, BR,
                              BS)  # fmt: skip
    for at in tl.static_range(0, INTERMEDIATE, BC):
        if at > 0:
            b_w, b_scales = rows_of(weights, o_row, at, HIDDEN, INTERMEDIATE, FORMAT, BR * MANY, BC)
            b_x = _hidden(p_hidden, p_weights, at, MANY, MANY, INTERMEDIATE, BC)
        b_out += _parts(b_w, b_scales, b_x, FORMAT, MANY, BR, BC)
        if REST > 0:
            if at > 0:
                b_v, b_others = rows_of(weights, o_other, at, HIDDEN, INTERMEDIATE, FORMAT,
                                        BR * PADDED, BC)  # fmt: skip
                b_y = _hidden(p_rest, p_rest_weights, at, REST, PADDED, INTERMEDIATE, BC)
            b_out += _parts(b_v, b_others, b_y, FORMAT, PADDED, BR, BC)
    tl.store(p_out, b_out, mask=o_h < HIDDEN)


def experts_step(
    x: Tensor | Normed,
    *,
    weights: Tensor,
    chosen: Tensor,
    gate_up: Matrices,
    down: Matrices,
    shared: SharedExpert | None = None,
    to: Tensor | None = None,
) -> Tensor:
    """Run one token [hidden] or a few [T, hidden] in two launches; as `moe.experts_step`.

    With `to`, the result is added to it, and comes in it.
    """
    given = x.x if isinstance(x, Normed) else x
    if given.ndim == 1:
        return experts_step(
            replace(x, x=given.unsqueeze(0)) if isinstance(x, Normed) else given.unsqueeze(0),
            weights=weights.unsqueeze(0),
            chosen=chosen.unsqueeze(0),
            gate_up=gate_up,
            down=down,
            shared=shared.of_few() if shared is not None else None,
            to=to.unsqueeze(0) if to is not None else None,
        ).squeeze(0)
    tokens, slots = chosen.shape
    _, hidden, intermediate = down.shape
    check_shapes(given, weights, chosen, gate_up, down)
    assert tokens <= MOST_STEP_TOKENS
    matrices, gate_up_format = stored(gate_up)
    between = given.new_empty(tokens, slots, intermediate, dtype=torch.float32)
    step = _step_of(gate_up_format)
    _gate_up_step[(cdiv(intermediate, step.gate_up_rows), tokens * slots)](
        given,
        x.scale if isinstance(x, Normed) else given,
        chosen,
        matrices,
        between,
        given.stride(0),
        x.eps if isinstance(x, Normed) else 0.0,
        SLOTS=slots,
        HIDDEN=hidden,
        INTERMEDIATE=intermediate,
        FORMAT=gate_up_format,
        NORMED=isinstance(x, Normed),
        BR=step.gate_up_rows,
        BC=min(step.columns, next_power_of_2(hidden)),
        num_warps=step.gate_up_warps,
        **overlapping(given),
    )
    out = given.new_empty(tokens, hidden, dtype=torch.float32) if to is None else to
    _add_down_step(between, weights, chosen, down, shared, out, added=to is not None)
    return out


def _add_down_step(
    between: Tensor,
    weights: Tensor,
    chosen: Tensor,
    down: Matrices,
    shared: SharedExpert | None,
    out: Tensor,
    *,
    added: bool,
) -> None:
    tokens, slots = chosen.shape
    _, hidden, intermediate = down.shape
    assert out.shape == (tokens, hidden)
    assert out.dtype == torch.float32
    assert out.stride(1) == 1
    given, down_format = stored(down)
    gate, gate_up, others, shared_format, size = between, between, given, down_format, 0
    if shared is not None:
        gate, gate_up = shared.gate, shared.gate_up
        size = gate_up.shape[1] // 2
        assert gate_up.stride(1) == 1
        assert shared.matrix.shape == (hidden, size)
        others, shared_format = stored(shared.matrix)
    step = _step_of(down_format)
    columns = min(step.columns, DOWN_COLUMNS)
    many = 1 << (slots.bit_length() - 1)
    _down_step[(cdiv(hidden, step.down_rows), tokens)](
        between,
        chosen,
        weights,
        given,
        gate,
        gate_up,
        others,
        out,
        gate.stride(0),
        gate_up.stride(0),
        out.stride(0),
        SLOTS=slots,
        MANY=many,
        PADDED=next_power_of_2(max(1, slots - many)),
        HIDDEN=hidden,
        INTERMEDIATE=intermediate,
        FORMAT=down_format,
        SHARED=size,
        SHARED_FORMAT=shared_format,
        ADDED=added,
        BR=step.down_rows,
        BC=min(columns, next_power_of_2(intermediate)),
        BS=min(columns, next_power_of_2(max(1, size))),
        num_warps=step.down_warps,
        **overlapping(between),
    )
