"""The mixture on a GPU: router, experts of a block of tokens, experts of a few tokens.

Prefill sorts the (token, expert) pairs by expert and cuts each expert's into tiles; a tile that is
not full is padded, never shared. Two launches multiply: gate and up, of which a thread holds what
belongs together, and down, which leaves a part for each pair. A third adds the parts of a token, in
the order in which its experts were chosen. Nothing is split or added up by atomics, and sums run
over the columns in one order: a token's result does not depend on what shares its launch.

Decode has a program for some rows of one pair, then one for some rows of a token, which takes them
of all its experts at once, the shared one too, and adds to the residual stream. Only chosen
experts are read.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import ALIGNED, INTERPRETED, configuration
from qcn_kernels.fp8.matrices import BLOCK, Fp8Matrices
from qcn_kernels.fp8.quantised import Activations, plain
from qcn_kernels.fp8.triton import activations
from qcn_kernels.groupwise.triton import is_groupwise
from qcn_kernels.launch import cdiv, kernel, next_power_of_2
from qcn_kernels.matrices import Matrices
from qcn_kernels.matrices.triton import (
    STEP,
    operand,
    quantised,
    row_sums,
    rows_of,
    run_columns,
    run_of,
    stored,
    tile_products,
    values_of,
)
from qcn_kernels.moe.shared import SharedExpert
from qcn_kernels.moe.tiles import KEPT, MOST_KEPT, Tile
from qcn_kernels.moe.tuned import tiles_for
from qcn_kernels.overlap.triton import await_previous, let_next_begin, overlapping
from qcn_kernels.rms_norm.normed import Normed

PLAIN_COLUMNS = 64  # at once in prefill, where no blocks of scales say otherwise
# Of a program in the router. On a chip a token is one warp's, which awaits no other to find the
# largest; interpreted, many tokens cost no more.
ROUTED_TOKENS, ROUTED_WARPS = (4 if INTERPRETED else 1), 1
MOST_STEP_TOKENS = 16
DOWN_COLUMNS = 512  # at once in decode, of all of a token's experts
CUT_EXPERTS = 1024  # at once; slots on a small card may be as many as all layers have experts
# Pairs are ranked within a block, SHORT_BLOCK by a program, by comparing with so many at once.
SHORT_BLOCK, LONG_BLOCK, RANKED_BY = 256, 1024, 16
SHORT_SORT = 16_384  # pairs for which there are blocks of the short kind
SORTED_BLOCKS = 16  # whose counts are added up at once
COMBINED = 1024  # elements of a program that adds up


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


@kernel(do_not_specialize=["tokens"])
def _route(
    p_logits,  # [T, E]
    p_weights,  # [T, TOP_K] fp32
    p_chosen,  # [T, TOP_K] int64
    tokens,
    stride,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """The largest logit, TOP_K times over, of equals the first.

    A logit's bits, as an integer that is ordered as logits are, stand above the number of the
    expert, counted from the last: the largest of these is found in one reduction. Those of bf16
    leave the lower half of 32 bits to the number; of 32 bits a warp finds the largest at once.
    """
    let_next_begin(OVERLAPS)
    await_previous(OVERLAPS)
    o_t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    o_e, o_s = tl.arange(0, BE), tl.arange(0, BS)
    p_row = p_logits + tl.minimum(o_t, tokens - 1) * stride
    logits = tl.load(p_row[:, None] + o_e[None, :], mask=(o_e < E)[None, :], other=float("-inf"))
    logits = logits.to(tl.float32)
    peak = tl.max(logits, axis=1)
    total = tl.sum(tl.exp(logits - peak[:, None]), axis=1)
    bits = logits.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    bits = tl.where(logits == 0.0, 0, bits)  # also of the negative zero
    SHORT: tl.constexpr = p_logits.dtype.element_ty == tl.bfloat16 and BE <= 0x10000
    if SHORT:
        left = (bits & -0x10000) | (BE - 1 - o_e)[None, :]
        least = tl.full([], -0x80000000, tl.int32)  # of a logit that is no number
    else:
        left = (bits.to(tl.int64) << 32) | (BE - 1 - o_e)[None, :]
        least = tl.full([], -0x8000000000000000, tl.int64)
    left = tl.where((o_e < E)[None, :], left, least)
    chosen = tl.zeros([BT, BS], dtype=tl.int32)
    weight = tl.zeros([BT, BS], dtype=tl.float32)
    of_chosen = tl.zeros([BT], dtype=tl.float32)
    for slot in tl.static_range(TOP_K):
        largest = tl.max(left, axis=1)
        if SHORT:
            at = BE - 1 - (largest & 0xFFFF)
            bits = largest & -0x10000
        else:
            at = BE - 1 - (largest & 0xFFFFFFFF).to(tl.int32)
            bits = (largest >> 32).to(tl.int32)
        bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        mass = tl.exp(bits.to(tl.float32, bitcast=True) - peak)
        of_chosen += mass
        this = (o_s == slot)[None, :]
        chosen = tl.where(this, at[:, None], chosen)
        weight = tl.where(this, mass[:, None], weight)
        left = tl.where(left == largest[:, None], least, left)
    weight /= (of_chosen if NORMALISE else total)[:, None]
    at_out = o_t[:, None] * TOP_K + o_s[None, :]
    mask = (o_t < tokens)[:, None] & (o_s < TOP_K)[None, :]
    tl.store(p_weights + at_out, weight, mask=mask)
    tl.store(p_chosen + at_out, chosen.to(tl.int64), mask=mask)


def route(logits: Tensor, *, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Choose experts; as `moe.route`. logits: [T, experts] or [experts], columns without gaps."""
    if logits.ndim == 1:
        weights, chosen = route(logits.unsqueeze(0), top_k=top_k, normalise=normalise)
        return weights.squeeze(0), chosen.squeeze(0)
    tokens, experts = logits.shape
    assert top_k <= experts
    assert logits.stride(1) == 1
    weights = logits.new_empty(tokens, top_k, dtype=torch.float32)
    chosen = logits.new_empty(tokens, top_k, dtype=torch.int64)
    _route[(cdiv(tokens, ROUTED_TOKENS),)](
        logits,
        weights,
        chosen,
        tokens,
        logits.stride(0),
        E=experts,
        TOP_K=top_k,
        NORMALISE=normalise,
        BT=ROUTED_TOKENS,
        BE=next_power_of_2(experts),
        BS=next_power_of_2(top_k),
        num_warps=ROUTED_WARPS,
        **overlapping(logits),
    )
    return weights, chosen


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which pairs a tile takes. The tensors may be longer than said."""

    tiles: int  # that may be needed
    order: Tensor  # [pairs] int32: pair numbers, sorted by expert
    expert: Tensor  # [tiles] int32: whose pairs a tile takes, `experts` where there are no more
    first: Tensor  # [tiles] int32: the first of them,
    end: Tensor  # [tiles] int32: and where the expert's end

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a product is given."""
        return self.order, self.expert, self.first, self.end


@kernel(do_not_specialize=["pairs"])
def _count(
    p_chosen,  # [pairs] int64
    p_ranks,  # [pairs] int32
    p_counts,  # [blocks, EXPERTS] int32
    pairs,
    EXPERTS: tl.constexpr,
    B: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BE: tl.constexpr,
):
    """How many pairs of a block are of each expert; of BI pairs, how many of their own before each.

    The first program of a block counts for all of it.
    """
    i_block, at_first = tl.program_id(0) * BI // B, tl.program_id(0) * BI // B * B
    o_pair = tl.program_id(0) * BI + tl.arange(0, BI)
    b_expert = tl.load(p_chosen + o_pair, mask=o_pair < pairs, other=-1).to(tl.int32)
    b_rank = tl.zeros([BI], dtype=tl.int32)
    for at in range(at_first, (tl.program_id(0) + 1) * BI, BJ):
        o_other = at + tl.arange(0, BJ)
        b_other = tl.load(p_chosen + o_other, mask=o_other < pairs, other=-1).to(tl.int32)
        before = (b_other[:, None] == b_expert[None, :]) & (o_other[:, None] < o_pair[None, :])
        b_rank += tl.sum(before.to(tl.int32), axis=0)
    tl.store(p_ranks + o_pair, b_rank, mask=o_pair < pairs)
    if tl.program_id(0) * BI == at_first:
        o_all, o_e = at_first + tl.arange(0, B), tl.arange(0, BE)
        b_all = tl.load(p_chosen + o_all, mask=o_all < pairs, other=-1).to(tl.int32)
        for first in range(0, EXPERTS, BE):
            here = (b_all >= first) & (b_all < first + BE)
            b_counts = tl.histogram(tl.where(here, b_all - first, 0), BE, mask=here)
            p_out = p_counts + i_block.to(tl.int64) * EXPERTS + first + o_e
            tl.store(p_out, b_counts, mask=first + o_e < EXPERTS)


@kernel(do_not_specialize=["pairs", "blocks", "tiles"])
def _place(
    p_chosen,  # [pairs] int64
    p_ranks,  # [pairs] int32
    p_counts,  # [blocks, EXPERTS] int32
    p_order,  # [pairs] int32
    p_expert,  # [tiles] int32
    p_first,  # [tiles] int32
    p_end,  # [tiles] int32
    pairs,
    blocks,
    tiles,
    ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
    B: tl.constexpr,
    BB: tl.constexpr,
    BE: tl.constexpr,
):
    """A block's pairs to their places, and of each expert's tiles every `blocks`-th.

    Each program adds up all counts for itself, so that nothing is awaited.
    """
    i_block = tl.program_id(0)
    o_pair = i_block * B + tl.arange(0, B)
    b_expert = tl.load(p_chosen + o_pair, mask=o_pair < pairs, other=-1).to(tl.int32)
    b_place = tl.load(p_ranks + o_pair, mask=o_pair < pairs, other=0)
    start, tile = tl.zeros([], dtype=tl.int32), tl.zeros([], dtype=tl.int32)
    for first in range(0, EXPERTS, BE):
        o_e = first + tl.arange(0, BE)
        b_all, b_before = tl.zeros([BE], dtype=tl.int32), tl.zeros([BE], dtype=tl.int32)
        for at in range(0, blocks, BB):
            o_b = at + tl.arange(0, BB)
            mask = (o_b < blocks)[:, None] & (o_e < EXPERTS)[None, :]
            p_in = p_counts + o_b[:, None].to(tl.int64) * EXPERTS + o_e[None, :]
            b_counts = tl.load(p_in, mask=mask, other=0)
            b_all += tl.sum(b_counts, axis=0)
            b_before += tl.sum(tl.where((o_b < i_block)[:, None], b_counts, 0), axis=0)
        b_start = start + tl.cumsum(b_all, axis=0) - b_all
        here = (b_expert >= first) & (b_expert < first + BE)
        b_at = tl.gather(b_start + b_before, tl.where(here, b_expert - first, 0), axis=0)
        b_place += tl.where(here, b_at, 0)
        b_tiles = (b_all + ROWS - 1) // ROWS
        b_tile = tile + tl.cumsum(b_tiles, axis=0) - b_tiles
        for i in range(i_block, tl.max(b_tiles, axis=0), blocks):
            mask = i < b_tiles
            tl.store(p_expert + b_tile + i, o_e, mask=mask)
            tl.store(p_first + b_tile + i, b_start + i * ROWS, mask=mask)
            tl.store(p_end + b_tile + i, b_start + b_all, mask=mask)
        start += tl.sum(b_all, axis=0)
        tile += tl.sum(b_tiles, axis=0)
    tl.store(p_order + b_place, o_pair, mask=o_pair < pairs)
    for at in range(tile + i_block * BE, tiles, blocks * BE):
        o_tile = at + tl.arange(0, BE)
        tl.store(p_expert + o_tile, o_tile * 0 + EXPERTS, mask=o_tile < tiles)


def _plan(chosen: Tensor, experts: int, rows: int) -> _Plan:
    """Sort pairs by expert, stably, and cut each expert's into tiles of at most `rows`."""
    pairs = chosen.numel()
    block = SHORT_BLOCK if pairs <= SHORT_SORT else LONG_BLOCK
    blocks = cdiv(pairs, block)
    tiles = cdiv(pairs, rows) + min(experts, pairs)
    at_once = min(CUT_EXPERTS, next_power_of_2(experts))
    width = cdiv(max(pairs, tiles), ALIGNED) * ALIGNED
    room = torch.empty(5, width, dtype=torch.int32, device=chosen.device)
    ranks, order, expert, first, end = room.unbind()
    counts = torch.empty(blocks, experts, dtype=torch.int32, device=chosen.device)
    sizes = {"EXPERTS": experts, "B": block, "BE": at_once, "num_warps": 8, "num_stages": 1}
    _count[(cdiv(pairs, SHORT_BLOCK),)](
        chosen, ranks, counts, pairs, BI=SHORT_BLOCK, BJ=RANKED_BY, **sizes
    )
    _place[(blocks,)](
        chosen,
        ranks,
        counts,
        order,
        expert,
        first,
        end,
        pairs,
        blocks,
        tiles,
        ROWS=rows,
        BB=SORTED_BLOCKS,
        **sizes,
    )
    return _Plan(tiles, order, expert, first, end)


@triton.jit
def _tile_rows(p_order, p_first, p_end, i_tile, BM: tl.constexpr):
    """Places of a tile's pairs in the order, their numbers, and which rows are not padding."""
    end = tl.load(p_end + i_tile)
    o_row = tl.load(p_first + i_tile) + tl.arange(0, BM)
    here = o_row < end
    o_row = tl.minimum(o_row, end - 1)
    return o_row, tl.load(p_order + o_row), here


@kernel()
def _gate_up(
    activations,
    weights,  # [E, 2 · INTERMEDIATE, HIDDEN]
    p_order,
    p_expert,
    p_first,
    p_end,
    out,  # [pairs, INTERMEDIATE] in order, and for "e4m3" their scales
    stride,
    SLOTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    FORMAT: tl.constexpr,
    QUANTISED: tl.constexpr,  # whether the output is to be
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """silu(gate) · up of a tile's pairs, BN / 2 columns of it."""
    i_n, i_tile = tl.program_id(0), tl.program_id(1)
    i_expert = tl.load(p_expert + i_tile)
    if i_expert < EXPERTS:
        o_row, pair, here = _tile_rows(p_order, p_first, p_end, i_tile, BM)
        i_row = i_n * (BN // 2)
        gate, up = tile_products(
            activations,
            stride,
            pair // SLOTS,
            weights,
            i_expert,
            i_row,
            INTERMEDIATE,
            2 * INTERMEDIATE,
            HIDDEN,
            FORMAT,
            BM,
            BN,
            BK,
            OPERAND,
        )
        b_h = gate * tl.sigmoid(gate) * up
        o_i = i_row + tl.arange(0, BN // 2)
        mask = here[:, None] & (o_i < INTERMEDIATE)[None, :]
        p_out = out[0] + o_row[:, None].to(tl.int64) * INTERMEDIATE + o_i[None, :]
        if QUANTISED:
            b_h, b_scale = quantised(b_h)
            tl.store(p_out, b_h, mask=mask)
            tl.store(out[1] + o_row * (INTERMEDIATE // (BN // 2)) + i_n, b_scale, mask=here)
        else:
            tl.store(p_out, b_h.to(out[0].dtype.element_ty), mask=mask)


@kernel()
def _down(
    activations,  # as `_gate_up` left them
    weights,  # [E, HIDDEN, INTERMEDIATE]
    p_order,
    p_expert,
    p_first,
    p_end,
    p_parts,  # [pairs, HIDDEN]
    EXPERTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    FORMAT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """The output of a tile's pairs, BN columns of it, each where its pair has its place."""
    i_n, i_tile = tl.program_id(0), tl.program_id(1)
    i_expert = tl.load(p_expert + i_tile)
    if i_expert < EXPERTS:
        o_row, pair, here = _tile_rows(p_order, p_first, p_end, i_tile, BM)
        i_row = i_n * BN
        first, second = tile_products(
            activations,
            INTERMEDIATE,
            o_row,
            weights,
            i_expert,
            i_row,
            BN // 2,
            HIDDEN,
            INTERMEDIATE,
            FORMAT,
            BM,
            BN,
            BK,
            OPERAND,
        )
        o_r = i_row + tl.arange(0, BN // 2)
        p_part = p_parts + pair[:, None].to(tl.int64) * HIDDEN + o_r[None, :]
        mask = here[:, None] & (o_r < HIDDEN)[None, :]
        tl.store(p_part, first.to(p_parts.dtype.element_ty), mask=mask)
        mask = here[:, None] & (o_r + BN // 2 < HIDDEN)[None, :]
        tl.store(p_part + BN // 2, second.to(p_parts.dtype.element_ty), mask=mask)


@triton.jit
def _one(b):
    """A tuple of one, for more to be added."""
    return (b,)


@kernel()
def _down_kept(
    activations,  # as `_gate_up` left them, e4m3
    weights,  # [E, HIDDEN, INTERMEDIATE] e4m3
    p_order,
    p_expert,
    p_first,
    p_end,
    p_parts,  # [pairs, HIDDEN]
    EXPERTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,  # rows of the matrix at once,
    SPAN: tl.constexpr,  # and in all
    OPERAND: tl.constexpr,
):
    """As `_down`, with SPAN columns of the output: a tile's activations are loaded once.

    They stay in shared memory while the matrix passes: what is loaded is of the matrix alone, and
    of the next rows while these are multiplied and what was before them is stored.
    """
    i_span, i_tile = tl.program_id(0), tl.program_id(1)
    i_expert = tl.load(p_expert + i_tile)
    if i_expert < EXPERTS:
        o_row, pair, here = _tile_rows(p_order, p_first, p_end, i_tile, BM)
        o_n, o_k = tl.arange(0, BN), tl.arange(0, STEP)
        BLOCKS: tl.constexpr = INTERMEDIATE // STEP
        OF_WEIGHTS: tl.constexpr = (HIDDEN + STEP - 1) // STEP * BLOCKS
        p_x = activations[0] + o_row[:, None].to(tl.int64) * INTERMEDIATE + o_k[None, :]
        p_of_x = activations[1] + o_row * BLOCKS
        b_x, of_x = _one(tl.load(p_x).to(OPERAND)), _one(tl.load(p_of_x))
        for k in tl.static_range(1, BLOCKS):
            b_x += (tl.load(p_x + k * STEP).to(OPERAND),)
            of_x += (tl.load(p_of_x + k),)
        p_w = weights[0] + i_expert.to(tl.int64) * (HIDDEN * INTERMEDIATE) + o_k[None, :]
        p_part = p_parts + pair[:, None].to(tl.int64) * HIDDEN
        for i_row in range(i_span * SPAN, tl.minimum((i_span + 1) * SPAN, HIDDEN), BN):
            o_r = i_row + o_n
            if HIDDEN % BN == 0:
                p_rows = p_w + o_r[:, None] * INTERMEDIATE
            else:
                p_rows = p_w + tl.minimum(o_r, HIDDEN - 1)[:, None] * INTERMEDIATE
            p_of_w = weights[1] + (i_expert * OF_WEIGHTS + i_row // STEP * BLOCKS)
            b_w, of_w = _one(tl.load(p_rows).to(OPERAND)), _one(tl.load(p_of_w))
            for k in tl.static_range(1, BLOCKS):
                b_w += (tl.load(p_rows + k * STEP).to(OPERAND),)
                of_w += (tl.load(p_of_w + k),)
            acc = tl.zeros([BM, BN], dtype=tl.float32)
            for k in tl.static_range(BLOCKS):
                b_product = tl.dot(b_x[k], tl.trans(b_w[k]), input_precision="ieee")
                acc += b_product * (of_x[k] * of_w[k])[:, None]
            mask = here[:, None] & (o_r < HIDDEN)[None, :]
            tl.store(p_part + o_r[None, :], acc.to(p_parts.dtype.element_ty), mask=mask)


@kernel()
def _combine(
    p_parts,  # [T, SLOTS, HIDDEN]
    p_weights,  # [T, SLOTS] fp32
    p_shared,  # [T, HIDDEN]
    p_gate,  # [T] logits
    p_out,  # [T, HIDDEN] fp32
    stride_shared,
    stride_gate,
    SLOTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    SHARED: tl.constexpr,  # whether there is a shared expert
    ADDED: tl.constexpr,  # whether to what the output holds
    B: tl.constexpr,
):
    i_t = tl.program_id(0).to(tl.int64)
    o_h = tl.program_id(1) * B + tl.arange(0, B)
    mask = o_h < HIDDEN
    acc = tl.zeros([B], dtype=tl.float32)
    for slot in tl.static_range(SLOTS):
        i_pair = i_t * SLOTS + slot
        b_part = tl.load(p_parts + i_pair * HIDDEN + o_h, mask=mask, other=0.0)
        acc += b_part.to(tl.float32) * tl.load(p_weights + i_pair)
    if SHARED:
        b_shared = tl.load(p_shared + i_t * stride_shared + o_h, mask=mask, other=0.0)
        b_gate = tl.load(p_gate + i_t * stride_gate).to(tl.float32)
        acc += b_shared.to(tl.float32) * tl.sigmoid(b_gate)
    p_out += i_t * HIDDEN + o_h
    if ADDED:
        acc += tl.load(p_out, mask=mask, other=0.0)
    tl.store(p_out, acc, mask=mask)


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


def experts(x: Activations, **given: Any) -> Tensor:
    """Run T tokens through their experts; as `experts_in`, in the tiles for so many."""
    gate_up: Matrices = given["gate_up"]
    name = stored(gate_up)[1]
    tiles = tiles_for(plain(x), "groupwise" if is_groupwise(name) else name)
    few = given["chosen"].numel() < tiles.many_from * gate_up.shape[0]
    return experts_in(tiles.few if few else tiles.many, x, **given)


def experts_in(
    tile: Tile,
    x: Activations,
    *,
    weights: Tensor,
    chosen: Tensor,
    gate_up: Matrices,
    down: Matrices,
    shared: Tensor | None = None,
    gate: Tensor | None = None,
    to: Tensor | None = None,
) -> Tensor:
    """Run T tokens through their experts; as `moe.experts`. x: columns without gaps.

    Args:
        tile: of the products.
        x, weights, chosen, gate_up, down: as there.
        shared: [T, hidden], the output of a shared expert that is to be added; rows may lie apart.
        gate: [T, 1], the logit of its gate.
        to: [T, hidden] fp32, to which all is added, and which is returned.
    """
    tokens, slots = chosen.shape
    count, hidden, intermediate = down.shape
    given, gate_up_format = stored(gate_up)
    read, x = activations(x, gate_up_format), plain(x)
    _check(x, weights, chosen, gate_up, down)
    plan = _plan(chosen, count, tile.rows)
    between = _between(x, tokens * slots, intermediate, stored(down)[1])
    _gate_up[(cdiv(2 * intermediate, tile.columns), plan.tiles)](
        read,
        given,
        *plan.tensors,
        between,
        read[0].stride(0),
        SLOTS=slots,
        EXPERTS=count,
        HIDDEN=hidden,
        INTERMEDIATE=intermediate,
        FORMAT=gate_up_format,
        QUANTISED=len(between) > 1,
        BM=tile.rows,
        BN=tile.columns,
        BK=_columns(gate_up_format),
        OPERAND=operand(gate_up_format),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    parts = x.new_empty(tokens, slots, hidden)
    _multiply_down(tile, plan, between, down, parts)
    out = x.new_empty(tokens, hidden, dtype=torch.float32) if to is None else to
    assert out.is_contiguous()
    assert shared is None or shared.stride(1) == 1
    _combine[(tokens, cdiv(hidden, COMBINED))](
        parts,
        weights,
        parts if shared is None else shared,
        parts if gate is None else gate,
        out,
        0 if shared is None else shared.stride(0),
        0 if gate is None else gate.stride(0),
        SLOTS=slots,
        HIDDEN=hidden,
        SHARED=shared is not None,
        ADDED=to is not None,
        B=COMBINED,
        num_warps=4,
    )
    return out


def _multiply_down(
    tile: Tile, plan: _Plan, between: tuple[Tensor, ...], down: Matrices, out: Tensor
) -> None:
    count, hidden, intermediate = down.shape
    given, format_name = stored(down)
    sizes = {"EXPERTS": count, "HIDDEN": hidden, "INTERMEDIATE": intermediate, "BM": tile.rows}
    sizes |= {"OPERAND": operand(format_name)}
    kept = configuration(KEPT, out).get(tile.rows)
    if kept is not None and format_name == "e4m3" and intermediate <= MOST_KEPT:
        _down_kept[(cdiv(hidden, kept.span), plan.tiles)](
            between,
            given,
            *plan.tensors,
            out,
            BN=kept.columns,
            SPAN=kept.span,
            num_warps=kept.warps,
            num_stages=kept.stages,
            **sizes,
        )
        return
    _down[(cdiv(hidden, tile.columns), plan.tiles)](
        between,
        given,
        *plan.tensors,
        out,
        FORMAT=format_name,
        BN=tile.columns,
        BK=_columns(format_name),
        num_warps=tile.warps,
        num_stages=tile.stages,
        **sizes,
    )


def _columns(format_name: str) -> int:
    """Columns that a product takes at once."""
    return BLOCK if format_name in ("e4m3", "bytes") else PLAIN_COLUMNS


def _between(x: Tensor, pairs: int, intermediate: int, down_format: str) -> tuple[Tensor, ...]:
    """Room for what stands between the two products, as the second reads it."""
    if down_format != "e4m3":
        return (x.new_empty(pairs, intermediate),)
    values = torch.empty(pairs, intermediate, dtype=torch.float8_e4m3fn, device=x.device)
    return values, x.new_empty(pairs, intermediate // BLOCK, dtype=torch.float32)


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
    _check(given, weights, chosen, gate_up, down)
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


def _check(x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Matrices, down: Matrices) -> None:
    """Assert what the kernels take for granted."""
    tokens, hidden = x.shape
    experts, _, intermediate = down.shape
    assert weights.shape == chosen.shape
    assert len(chosen) == tokens
    assert gate_up.shape == (experts, 2 * intermediate, hidden)
    assert down.shape == (experts, hidden, intermediate)
    assert x.stride(1) == 1
    assert weights.is_contiguous()
    assert chosen.is_contiguous()
    assert weights.dtype == torch.float32
    assert chosen.dtype == torch.int64
    if isinstance(gate_up, Fp8Matrices):  # no block of 128 rows holds both gate and up
        assert intermediate % BLOCK == 0
