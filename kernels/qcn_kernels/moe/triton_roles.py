"""The grouped FP8 products on compute capability 9.0, by producers and consumers, in Gluon.

As `triton.py` multiplies, in its order of sums: bits are equal. Triton's own pipeline waits for
each product before the next begins, for its sum is scaled at once. Here a program stays on its
multiprocessor, takes tile after tile, and its warps have roles: one group loads, and two multiply
64 rows each. While one of these scales, the tensor cores run the other's product; while it leaves
its results, what comes next is on its way.

Every slot of shared memory has two barriers: `full`, on which the consumers wait, and `empty`, on
which the producer does. The producer also tells of each tile (`_tell`): read from global memory, a
tile's place would cost the consumers a wait of their own.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from qcn_kernels.fp8.matrices import BLOCK as SCALED
from qcn_kernels.fp8.reference import LARGEST as LARGEST_E4M3
from qcn_kernels.fp8.reference import SMALLEST as SMALLEST_PEAK
from qcn_kernels.launch import gluon_kernel
from qcn_kernels.moe.triton_plan import Plan

# Triton 3.9 has other names for these than 3.6.
_load_box = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_gather = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared

ROWS = 128  # of a tile
BLOCK = gl.constexpr(SCALED)  # columns under one scale
HALF = gl.constexpr(64)  # rows of a group of warps
E4M3 = gl.constexpr(gl.NVMMASharedLayout(128, 8, 2))  # how wgmma and TMA want rows of 128 bytes
BARRIER = gl.constexpr(mbarrier.MBarrierLayout())
PLAIN = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
SUMS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32]))
GATHERED = gl.constexpr(gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0]))
STORED_BYTES = gl.constexpr(gl.BlockedLayout([2, 16], [4, 8], [4, 1], [1, 0]))
STORED_BF16 = gl.constexpr(gl.BlockedLayout([2, 8], [8, 4], [4, 1], [1, 0]))
FLAT = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
LARGEST = gl.constexpr(LARGEST_E4M3)
SMALLEST = gl.constexpr(SMALLEST_PEAK)


@gluon.jit
def _product(a, b, zeros):
    """Begin a product [64, 128] of 128 columns: rows a by rows b."""
    return warpgroup_mma(a, b.permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _tile(plan, unit, units, EACH: gl.constexpr, EXPERTS: gl.constexpr):
    """The expert, the first place and the end of a unit's tile; no expert behind the last unit."""
    i_tile = gl.minimum(unit, units - 1) // EACH
    i_expert = gl.where(unit < units, gl.load(plan[1] + i_tile), EXPERTS)
    return i_expert, gl.load(plan[2] + i_tile), gl.load(plan[3] + i_tile)


@gluon.jit
def _tell(info, told, turn, i_expert, first, end, i_part, WARPS: gl.constexpr):
    """Tell the consumers of a unit, long before they come to it."""
    layout: gl.constexpr = gl.BlockedLayout([4], [32], [WARPS], [0])
    o = gl.arange(0, 4, layout)
    b_info = gl.where(o == 0, i_expert, gl.where(o == 1, first, gl.where(o == 2, end, i_part)))
    info.index(turn % 2).store(b_info)
    mbarrier.arrive(told.index(turn % 2), count=1)


@gluon.jit
def _hear(info, told, turn):
    """What was told of a unit. A producer is less than a unit ahead: two find room."""
    layout: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
    o = gl.arange(0, 4, layout)
    mbarrier.wait(told.index(turn % 2), turn // 2 & 1)
    b_info = info.index(turn % 2).load(layout)
    i_expert = gl.sum(gl.where(o == 0, b_info, 0), axis=0)
    first = gl.sum(gl.where(o == 1, b_info, 0), axis=0)
    end = gl.sum(gl.where(o == 2, b_info, 0), axis=0)
    return i_expert, first, end, gl.sum(gl.where(o == 3, b_info, 0), axis=0)


@gluon.jit
def _load_gate_up(
    weights,
    p_x,
    p_of_x,
    plan,
    x,
    of_x,
    w,
    full,
    empty,
    info,
    told,
    units,
    SLOTS: gl.constexpr,
    EXPERTS: gl.constexpr,
    HIDDEN: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The producer's part: weights by TMA, activations gathered 16 bytes a thread."""
    COLUMNS: gl.constexpr = INTERMEDIATE // BLOCK
    BLOCKS: gl.constexpr = HIDDEN // BLOCK
    o_k = gl.arange(0, BLOCK, gl.SliceLayout(0, GATHERED))
    o_m = gl.arange(0, HALF, gl.SliceLayout(1, GATHERED))
    o_flat = gl.arange(0, BLOCK, FLAT)
    at, turn = 0, 0
    unit = gl.program_id(0)
    i_expert, first, end = _tile(plan, unit, units, COLUMNS, EXPERTS)
    while i_expert < EXPERTS:
        i_n = unit % COLUMNS
        _tell(info, told, turn, i_expert, first, end, i_n, 4)
        last = end - 1
        t_upper = gl.load(plan[0] + gl.minimum(first + o_m, last)) // SLOTS
        t_lower = gl.load(plan[0] + gl.minimum(first + HALF + o_m, last)) // SLOTS
        t_all = gl.load(plan[0] + gl.minimum(first + o_flat, last)) // SLOTS
        o_upper = p_x + (t_upper.to(gl.int64) * HIDDEN)[:, None] + o_k[None, :]
        o_lower = p_x + (t_lower.to(gl.int64) * HIDDEN)[:, None] + o_k[None, :]
        p_scale = p_of_x + t_all * BLOCKS
        whole = first + HALF < end
        i_row = i_expert * (2 * INTERMEDIATE) + i_n * BLOCK
        unit += gl.num_programs(0)
        i_expert, first, end = _tile(plan, unit, units, COLUMNS, EXPERTS)
        for k in range(BLOCKS):
            slot = at % STAGES
            ready = full.index(slot)
            mbarrier.wait(empty.index(slot), (at // STAGES & 1) ^ 1)
            mbarrier.expect(ready, 2 * BLOCK * BLOCK)
            _load_box(weights, [i_row, k * BLOCK], ready, w.index(2 * slot))
            _load_box(weights, [i_row + INTERMEDIATE, k * BLOCK], ready, w.index(2 * slot + 1))
            _gather(x.index(2 * slot), o_upper + k * BLOCK)
            if whole:
                _gather(x.index(2 * slot + 1), o_lower + k * BLOCK)
            _gather(of_x.index(slot), p_scale + k)
            async_copy.mbarrier_arrive(ready, increment_count=False)
            at += 1
        turn += 1
    _tell(info, told, turn, EXPERTS, 0, 0, 0, 4)


@gluon.jit
def _multiply_gate_up(
    p_of_w,
    out,
    x,
    of_x,
    w,
    full,
    empty,
    info,
    told,
    skew,
    EXPERTS: gl.constexpr,
    HIDDEN: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    STAGES: gl.constexpr,
    SKEW: gl.constexpr,
    PART: gl.constexpr,
):
    """A consumer's part: 64 rows of each tile."""
    COLUMNS: gl.constexpr = INTERMEDIATE // BLOCK
    BLOCKS: gl.constexpr = HIDDEN // BLOCK
    AFTER: gl.constexpr = COLUMNS * BLOCKS  # from a scale of gate to up's
    zeros = gl.zeros([HALF, BLOCK], gl.float32, SUMS)
    at, turn = 0, 0
    i_expert, first, end, i_n = _hear(info, told, turn)
    p_gate = p_of_w + (gl.minimum(i_expert, EXPERTS - 1) * (2 * COLUMNS) + i_n) * BLOCKS
    of_gate, of_up = gl.load(p_gate), gl.load(p_gate + AFTER)
    if PART == 1 and i_expert < EXPERTS:  # lag, so that not both leave results at once
        mbarrier.wait(skew, 0)
    while i_expert < EXPERTS:
        gate, up = zeros, zeros
        begin, stop, i_here = first + PART * HALF, end, i_n
        if begin < stop:
            for k in range(BLOCKS):
                slot = at % STAGES
                mbarrier.wait(full.index(slot), at // STAGES & 1)
                fence_async_shared()  # what was gathered is not by the proxy that multiplies
                b_x = x.index(2 * slot + PART)
                product = _product(b_x, w.index(2 * slot), zeros)
                scale = of_x.index(slot).slice(PART * HALF, HALF).load(gl.SliceLayout(1, SUMS))
                b_gate, b_up = (of_gate * scale)[:, None], (of_up * scale)[:, None]
                k_next = gl.minimum(k + 1, BLOCKS - 1)
                of_gate, of_up = gl.load(p_gate + k_next), gl.load(p_gate + AFTER + k_next)
                product = warpgroup_mma_wait(0, deps=[product])
                gate += product * b_gate
                product = _product(b_x, w.index(2 * slot + 1), zeros)
                product = warpgroup_mma_wait(0, deps=[product])
                mbarrier.arrive(empty.index(slot), count=1)
                if PART == 0:
                    mbarrier.arrive(skew, count=1, pred=at == SKEW - 1)
                up += product * b_up
                at += 1
        else:
            for _ in range(BLOCKS):
                slot = at % STAGES
                mbarrier.wait(full.index(slot), at // STAGES & 1)
                mbarrier.arrive(empty.index(slot), count=1)
                at += 1
        turn += 1
        i_expert, first, end, i_n = _hear(info, told, turn)
        p_gate = p_of_w + (gl.minimum(i_expert, EXPERTS - 1) * (2 * COLUMNS) + i_n) * BLOCKS
        of_gate, of_up = gl.load(p_gate), gl.load(p_gate + AFTER)
        if begin < stop:
            _leave_gate_up(gate, up, out, begin, stop, i_here, COLUMNS)


@gluon.jit
def _computed_here(i):
    """The same number, of which the compiler knows nothing: what follows from it is not kept."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [i], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _leave_gate_up(gate, up, out, begin, end, i_n, COLUMNS: gl.constexpr):
    """Quantise 64 rows and 128 columns of silu(gate) · up and store them."""
    h = gate * (1 / (1 + gl.exp(-gate))) * up
    peak = gl.maximum(gl.max(gl.abs(h), axis=1), SMALLEST)
    h *= gl.div_rn(gl.full_like(peak, LARGEST), peak)[:, None]
    o_scale = begin + gl.arange(0, HALF, gl.SliceLayout(1, SUMS))
    scale = gl.div_rn(peak, gl.full_like(peak, LARGEST))
    gl.store(out[1] + o_scale * COLUMNS + i_n, scale, mask=o_scale < end)
    b_h = gl.convert_layout(h.to(gl.float8e4nv), STORED_BYTES)
    o_row = begin + gl.arange(0, HALF, gl.SliceLayout(1, STORED_BYTES))
    o_i = gl.arange(0, BLOCK, gl.SliceLayout(0, STORED_BYTES)) + i_n * BLOCK
    p_out = out[0] + (o_row.to(gl.int64) * (COLUMNS * BLOCK))[:, None] + o_i[None, :]
    gl.store(p_out, b_h, mask=(o_row < end)[:, None])


@gluon_kernel(do_not_specialize=["units"])
def _gate_up_by_roles(
    weights,  # [E · 2 · INTERMEDIATE, HIDDEN] e4m3, boxes of 128 by 128
    p_of_w,  # their scales
    p_x,  # [T, HIDDEN] e4m3
    p_of_x,  # [T, HIDDEN / 128] fp32
    p_order,
    p_expert,
    p_first,
    p_end,  # the plan
    p_out,  # [pairs, INTERMEDIATE] e4m3 in order,
    p_of_out,  # and their scales
    units,  # tiles times INTERMEDIATE / 128
    SLOTS: gl.constexpr,
    EXPERTS: gl.constexpr,
    HIDDEN: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    STAGES: gl.constexpr,
    SKEW: gl.constexpr,
    REGISTERS: gl.constexpr,
    LOADING: gl.constexpr,
):
    """silu(gate) · up of tiles of 128 pairs and 128 columns."""
    plan, out = (p_order, p_expert, p_first, p_end), (p_out, p_of_out)
    x = gl.allocate_shared_memory(gl.float8e4nv, [2 * STAGES, HALF, BLOCK], E4M3)
    w = gl.allocate_shared_memory(gl.float8e4nv, [2 * STAGES, BLOCK, BLOCK], E4M3)
    of_x = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK], PLAIN)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    told = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    info = gl.allocate_shared_memory(gl.int32, [2, 4], PLAIN)
    skew = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=129)  # TMA, and the threads that gather
        mbarrier.init(empty.index(slot), count=2)
    for turn in gl.static_range(2):
        mbarrier.init(told.index(turn), count=1)
    mbarrier.init(skew, count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _multiply_gate_up,
                (
                    p_of_w,
                    out,
                    x,
                    of_x,
                    w,
                    full,
                    empty,
                    info,
                    told,
                    skew,
                    EXPERTS,
                    HIDDEN,
                    INTERMEDIATE,
                    STAGES,
                    SKEW,
                    0,
                ),
            ),
            (
                _multiply_gate_up,
                (
                    p_of_w,
                    out,
                    x,
                    of_x,
                    w,
                    full,
                    empty,
                    info,
                    told,
                    skew,
                    EXPERTS,
                    HIDDEN,
                    INTERMEDIATE,
                    STAGES,
                    SKEW,
                    1,
                ),
            ),
            (
                _load_gate_up,
                (
                    weights,
                    p_x,
                    p_of_x,
                    plan,
                    x,
                    of_x,
                    w,
                    full,
                    empty,
                    info,
                    told,
                    units,
                    SLOTS,
                    EXPERTS,
                    HIDDEN,
                    INTERMEDIATE,
                    STAGES,
                ),
            ),
        ],
        [4, 4],
        [REGISTERS, LOADING],
    )


@gluon.jit
def _load_down(
    activations,
    weights,
    plan,
    x,
    w,
    kept,
    left,
    full,
    empty,
    info,
    told,
    units,
    EXPERTS: gl.constexpr,
    HIDDEN: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    SPAN: gl.constexpr,
    STAGES: gl.constexpr,
    KEPT: gl.constexpr,
):
    """The producer's part: a tile's activations once, and the matrix in steps, all by TMA."""
    SPANS: gl.constexpr = HIDDEN // SPAN
    BLOCKS: gl.constexpr = INTERMEDIATE // BLOCK
    at, turn = 0, 0
    unit = gl.program_id(0)
    i_expert, first, end = _tile(plan, unit, units, SPANS, EXPERTS)
    while i_expert < EXPERTS:
        _tell(info, told, turn, i_expert, first, end, unit % SPANS, 1)
        i_row = i_expert * HIDDEN + unit % SPANS * SPAN
        place = turn % KEPT
        here = kept.index(place)
        mbarrier.wait(left.index(place), (turn // KEPT & 1) ^ 1)
        mbarrier.expect(here, BLOCK * INTERMEDIATE)
        for k in gl.static_range(BLOCKS):
            for part in gl.static_range(2):
                at_x = (place * BLOCKS + k) * 2 + part
                _load_box(activations, [first + part * HALF, k * BLOCK], here, x.index(at_x))
        unit += gl.num_programs(0)
        i_expert, first, end = _tile(plan, unit, units, SPANS, EXPERTS)
        for step in range(SPAN // BLOCK * BLOCKS):
            slot = at % STAGES
            ready = full.index(slot)
            mbarrier.wait(empty.index(slot), (at // STAGES & 1) ^ 1)
            mbarrier.expect(ready, BLOCK * BLOCK)
            corner = [i_row + step // BLOCKS * BLOCK, step % BLOCKS * BLOCK]
            _load_box(weights, corner, ready, w.index(slot))
            at += 1
        turn += 1
    _tell(info, told, turn, EXPERTS, 0, 0, 0, 1)


@gluon.jit
def _one(b):
    """A tuple of one, for more to be added."""
    return (b,)


@gluon.jit
def _multiply_down(
    p_of_x,
    p_of_w,
    plan,
    p_parts,
    x,
    w,
    kept,
    left,
    full,
    empty,
    info,
    told,
    EXPERTS: gl.constexpr,
    HIDDEN: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    SPAN: gl.constexpr,
    STAGES: gl.constexpr,
    KEPT: gl.constexpr,
    PART: gl.constexpr,
):
    """A consumer's part: 64 rows of each tile."""
    BLOCKS: gl.constexpr = INTERMEDIATE // BLOCK
    STEPS: gl.constexpr = SPAN // BLOCK
    zeros = gl.zeros([HALF, BLOCK], gl.float32, SUMS)
    at, turn = 0, 0
    i_expert, first, end, i_span = _hear(info, told, turn)
    while i_expert < EXPERTS:
        begin = first + PART * HALF
        p_scale = p_of_w + (i_expert * (HIDDEN // BLOCK) + i_span * STEPS) * BLOCKS
        place = turn % KEPT
        if begin < end:
            o_sum = gl.minimum(begin + gl.arange(0, HALF, gl.SliceLayout(1, SUMS)), end - 1)
            of_x = _one(gl.load(p_of_x + o_sum * BLOCKS))
            for k in gl.static_range(1, BLOCKS):
                of_x += (gl.load(p_of_x + o_sum * BLOCKS + k),)
            mbarrier.wait(kept.index(place), turn // KEPT & 1)
            b_out = zeros.to(gl.bfloat16)
            for step in range(STEPS):
                mbarrier.wait(full.index(at % STAGES), at // STAGES & 1)
                b_x = x.index(place * BLOCKS * 2 + PART)
                product = _product(b_x, w.index(at % STAGES), zeros)
                stop = gl.where(step > 0, end, begin)  # of the step before, while this one runs
                i_column = i_span * SPAN + (step - 1) * BLOCK
                _leave_down(b_out, plan, p_parts, begin, stop, i_column, HIDDEN)
                acc = zeros
                for k in gl.static_range(BLOCKS):
                    slot = at % STAGES
                    scale = (of_x[k] * gl.load(p_scale + step * BLOCKS + k))[:, None]
                    at += 1
                    if k + 1 < BLOCKS:  # the next product runs while this is scaled
                        mbarrier.wait(full.index(at % STAGES), at // STAGES & 1)
                        b_x = x.index((place * BLOCKS + k + 1) * 2 + PART)
                        following = _product(b_x, w.index(at % STAGES), zeros)
                        b_product, acc = warpgroup_mma_wait(1, deps=[product, acc])
                        product = following
                    else:
                        b_product, acc = warpgroup_mma_wait(0, deps=[product, acc])
                    mbarrier.arrive(empty.index(slot), count=1)
                    acc += b_product * scale
                b_out = acc.to(gl.bfloat16)
            i_column = i_span * SPAN + (STEPS - 1) * BLOCK
            _leave_down(b_out, plan, p_parts, begin, end, i_column, HIDDEN)
        else:
            mbarrier.wait(kept.index(place), turn // KEPT & 1)
            for _ in range(STEPS * BLOCKS):
                slot = at % STAGES
                mbarrier.wait(full.index(slot), at // STAGES & 1)
                mbarrier.arrive(empty.index(slot), count=1)
                at += 1
        mbarrier.arrive(left.index(place), count=1)
        turn += 1
        i_expert, first, end, i_span = _hear(info, told, turn)


@gluon.jit
def _leave_down(b_out, plan, p_parts, begin, end, i_column, HIDDEN: gl.constexpr):
    """Store 64 rows and 128 columns, each row where its pair has its place."""
    b_out = gl.convert_layout(b_out, STORED_BF16)
    begin = _computed_here(begin)
    o_row = begin + gl.arange(0, HALF, gl.SliceLayout(1, STORED_BF16))
    pair = gl.load(plan[0] + gl.maximum(gl.minimum(o_row, end - 1), 0))
    o_c = gl.arange(0, BLOCK, gl.SliceLayout(0, STORED_BF16)) + i_column
    p_out = p_parts + (pair.to(gl.int64) * HIDDEN)[:, None] + o_c[None, :]
    gl.store(p_out, b_out, mask=(o_row < end)[:, None])


@gluon_kernel(do_not_specialize=["units"])
def _down_by_roles(
    activations,  # [pairs, INTERMEDIATE] e4m3 in order, boxes of 64 by 128
    p_of_x,  # their scales
    weights,  # [E · HIDDEN, INTERMEDIATE] e4m3, boxes of 128 by 128
    p_of_w,  # their scales
    p_order,
    p_expert,
    p_first,
    p_end,  # the plan
    p_parts,  # [pairs, HIDDEN] bf16
    units,  # tiles times HIDDEN / SPAN
    EXPERTS: gl.constexpr,
    HIDDEN: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    SPAN: gl.constexpr,
    STAGES: gl.constexpr,
    KEPT: gl.constexpr,
    REGISTERS: gl.constexpr,
    LOADING: gl.constexpr,
):
    """The output of tiles of 128 pairs, SPAN columns of it, each where its pair has its place."""
    BLOCKS: gl.constexpr = INTERMEDIATE // BLOCK
    plan = (p_order, p_expert, p_first, p_end)
    x = gl.allocate_shared_memory(gl.float8e4nv, [2 * BLOCKS * KEPT, HALF, BLOCK], E4M3)
    w = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, BLOCK, BLOCK], E4M3)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    kept = gl.allocate_shared_memory(gl.int64, [KEPT, 1], BARRIER)
    left = gl.allocate_shared_memory(gl.int64, [KEPT, 1], BARRIER)
    told = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    info = gl.allocate_shared_memory(gl.int32, [2, 4], PLAIN)
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=2)
    for place in gl.static_range(KEPT):
        mbarrier.init(kept.index(place), count=1)
        mbarrier.init(left.index(place), count=2)
    for turn in gl.static_range(2):
        mbarrier.init(told.index(turn), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _multiply_down,
                (
                    p_of_x,
                    p_of_w,
                    plan,
                    p_parts,
                    x,
                    w,
                    kept,
                    left,
                    full,
                    empty,
                    info,
                    told,
                    EXPERTS,
                    HIDDEN,
                    INTERMEDIATE,
                    SPAN,
                    STAGES,
                    KEPT,
                    0,
                ),
            ),
            (
                _multiply_down,
                (
                    p_of_x,
                    p_of_w,
                    plan,
                    p_parts,
                    x,
                    w,
                    kept,
                    left,
                    full,
                    empty,
                    info,
                    told,
                    EXPERTS,
                    HIDDEN,
                    INTERMEDIATE,
                    SPAN,
                    STAGES,
                    KEPT,
                    1,
                ),
            ),
            (
                _load_down,
                (
                    activations,
                    weights,
                    plan,
                    x,
                    w,
                    kept,
                    left,
                    full,
                    empty,
                    info,
                    told,
                    units,
                    EXPERTS,
                    HIDDEN,
                    INTERMEDIATE,
                    SPAN,
                    STAGES,
                    KEPT,
                ),
            ),
        ],
        [4, 1],
        [REGISTERS, LOADING],
    )


# Of 65,536 registers a multiprocessor, the consumers take what the producer leaves: 3 groups of 128
# threads begin with 168 each. Gathering takes more addresses than TMA.
MULTIPROCESSORS = 132  # of an H100 or H200
SPAN_OF_DOWN = 1024  # columns of a program's unit: few enough to divide them evenly
COMMON = {"STAGES": 4, "num_warps": 4, "maxnreg": 168}
GATE_UP = COMMON | {"SKEW": 2, "REGISTERS": 216, "LOADING": 72}
DOWN = COMMON | {"SPAN": SPAN_OF_DOWN, "KEPT": 2, "REGISTERS": 240, "LOADING": 24}


def fits(intermediate: int, hidden: int) -> bool:
    """Whether matrices have the sides that these kernels take: 512 columns are kept at most."""
    return intermediate % SCALED == 0 and intermediate <= 512 and hidden % SPAN_OF_DOWN == 0


def multiply(
    plan: Plan,
    x: tuple[Tensor, ...],
    gate_up: tuple[Tensor, ...],
    down: tuple[Tensor, ...],
    between: tuple[Tensor, ...],
    parts: Tensor,
) -> None:
    """As `triton.multiply`, for FP8 alone: of all but the parts, values and scales.

    Args:
        plan: of the pairs, in tiles of `ROWS`.
        x: of T tokens.
        gate_up, down: [experts, ...].
        between: [pairs, intermediate], room for what stands between the products.
        parts: [T, slots, hidden] bf16.
    """
    experts, hidden, intermediate = down[0].shape
    assert parts.dtype == torch.bfloat16
    assert x[0].is_contiguous()
    sizes = {"EXPERTS": experts, "HIDDEN": hidden, "INTERMEDIATE": intermediate}
    units = plan.tiles * (intermediate // SCALED)
    _gate_up_by_roles[(min(MULTIPROCESSORS, units),)](
        _boxes(gate_up[0], ROWS),
        gate_up[1],
        *x,
        *plan.tensors,
        *between,
        units,
        SLOTS=parts.shape[1],
        **sizes,
        **GATE_UP,
    )
    units = plan.tiles * (hidden // SPAN_OF_DOWN)
    _down_by_roles[(min(MULTIPROCESSORS, units),)](
        _boxes(between[0], ROWS // 2),
        between[1],
        _boxes(down[0], ROWS),
        down[1],
        *plan.tensors,
        parts,
        units,
        **sizes,
        **DOWN,
    )


def _boxes(matrices: Tensor, rows: int) -> TensorDescriptor:
    """A descriptor of matrices under each other, that are loaded in boxes of 128 columns."""
    flat = matrices.view(-1, matrices.shape[-1])
    layout = gl.NVMMASharedLayout(128, 8, 2)
    return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), [rows, SCALED], layout)
