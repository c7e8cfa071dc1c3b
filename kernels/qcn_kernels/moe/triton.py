"""Experts of a block of tokens on a GPU: pairs sorted by expert and cut into tiles.

Two launches multiply: gate and up, of which a thread holds what belongs together, and down, which
leaves a part for each pair. A third adds the parts of a token, in the order in which its experts
were chosen. Nothing is split or added up by atomics, and sums run over the columns in one order: a
token's result does not depend on what shares its launch.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import INTERPRETED, stages
from qcn_kernels.fp8.matrices import BLOCK
from qcn_kernels.fp8.quantised import Activations, plain
from qcn_kernels.fp8.triton import activations
from qcn_kernels.groupwise.triton import is_groupwise
from qcn_kernels.launch import cdiv, kernel
from qcn_kernels.matrices import Matrices
from qcn_kernels.matrices.triton import STEP, operand, quantised, stored, tile_products
from qcn_kernels.moe.shapes import check_shapes
from qcn_kernels.moe.tiles import MOST_KEPT, Tile
from qcn_kernels.moe.triton_plan import Plan, is_tail, plan_tiles, tile_rows
from qcn_kernels.moe.tuned import tiles_for

PLAIN_COLUMNS = 64  # at once, where no blocks of scales say otherwise
COMBINED = 1024  # elements of a program that adds up


@kernel()
def _gate_up(
    activations,
    weights,  # [E, 2 · INTERMEDIATE, HIDDEN]
    plan,
    out,  # [pairs, INTERMEDIATE] in order, and for "e4m3" their scales
    stride,
    SLOTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    FORMAT: tl.constexpr,
    QUANTISED: tl.constexpr,  # whether the output is to be
    BM: tl.constexpr,
    TAIL: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OPERAND: tl.constexpr,
    HELD: tl.constexpr,
):
    """silu(gate) · up of a tile's pairs, BN / 2 columns of it."""
    i_n, i_tile = tl.program_id(0), tl.program_id(1)
    i_expert = tl.load(plan[1] + i_tile)
    if i_expert < EXPERTS:
        if is_tail(plan, i_tile, BM, TAIL):
            _gate_up_rows(activations, weights, plan, out, stride, i_n, i_tile, i_expert, SLOTS,
                          HIDDEN, INTERMEDIATE, FORMAT, QUANTISED, BM // 2, BN, BK, OPERAND,
                          HELD)  # fmt: skip
        else:
            _gate_up_rows(activations, weights, plan, out, stride, i_n, i_tile, i_expert, SLOTS,
                          HIDDEN, INTERMEDIATE, FORMAT, QUANTISED, BM, BN, BK, OPERAND,
                          HELD)  # fmt: skip


@triton.jit
def _gate_up_rows(
    activations,
    weights,
    plan,
    out,
    stride,
    i_n,
    i_tile,
    i_expert,
    SLOTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    FORMAT: tl.constexpr,
    QUANTISED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OPERAND: tl.constexpr,
    HELD: tl.constexpr,
):
    """`_gate_up` of a tile of BM rows."""
    o_row, pair, here = tile_rows(plan, i_tile, BM)
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
        HELD,
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
    plan,
    p_parts,  # [pairs, HIDDEN]
    EXPERTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    FORMAT: tl.constexpr,
    BM: tl.constexpr,
    TAIL: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """The output of a tile's pairs, BN columns of it, each where its pair has its place."""
    i_n, i_tile = tl.program_id(0), tl.program_id(1)
    i_expert = tl.load(plan[1] + i_tile)
    if i_expert < EXPERTS:
        if is_tail(plan, i_tile, BM, TAIL):
            _down_rows(activations, weights, plan, p_parts, i_n, i_tile, i_expert, HIDDEN,
                       INTERMEDIATE, FORMAT, BM // 2, BN, BK, OPERAND)  # fmt: skip
        else:
            _down_rows(activations, weights, plan, p_parts, i_n, i_tile, i_expert, HIDDEN,
                       INTERMEDIATE, FORMAT, BM, BN, BK, OPERAND)  # fmt: skip


@triton.jit
def _down_rows(
    activations,
    weights,
    plan,
    p_parts,
    i_n,
    i_tile,
    i_expert,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    FORMAT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """`_down` of a tile of BM rows."""
    o_row, pair, here = tile_rows(plan, i_tile, BM)
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
    plan,
    p_parts,  # [pairs, HIDDEN]
    EXPERTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    BM: tl.constexpr,
    TAIL: tl.constexpr,
    BN: tl.constexpr,  # rows of the matrix at once,
    SPAN: tl.constexpr,  # and in all
    OPERAND: tl.constexpr,
):
    """As `_down`, with SPAN columns of the output: a tile's activations are loaded once.

    They stay in shared memory while the matrix passes: what is loaded is of the matrix alone, and
    of the next rows while these are multiplied and what was before them is stored.
    """
    i_span, i_tile = tl.program_id(0), tl.program_id(1)
    i_expert = tl.load(plan[1] + i_tile)
    if i_expert < EXPERTS:
        if is_tail(plan, i_tile, BM, TAIL):
            _down_kept_rows(activations, weights, plan, p_parts, i_span, i_tile, i_expert, HIDDEN,
                            INTERMEDIATE, BM // 2, BN, SPAN, OPERAND)  # fmt: skip
        else:
            _down_kept_rows(activations, weights, plan, p_parts, i_span, i_tile, i_expert, HIDDEN,
                            INTERMEDIATE, BM, BN, SPAN, OPERAND)  # fmt: skip


@triton.jit
def _down_kept_rows(
    activations,
    weights,
    plan,
    p_parts,
    i_span,
    i_tile,
    i_expert,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SPAN: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """`_down_kept` of a tile of BM rows."""
    o_row, pair, here = tile_rows(plan, i_tile, BM)
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
    count, hidden, _ = down.shape
    read, x = activations(x, stored(gate_up)[1]), plain(x)
    check_shapes(x, weights, chosen, gate_up, down)
    parts = x.new_empty(tokens, slots, hidden)
    multiply(tile, plan_tiles(chosen, count, tile.rows), read, gate_up, down, parts)
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


def multiply(
    tile: Tile,
    plan: Plan,
    x: tuple[Tensor, ...],
    gate_up: Matrices,
    down: Matrices,
    parts: Tensor,
) -> None:
    """Leave in parts [T, slots, hidden] what each expert makes of its tokens.

    Args:
        tile: of the products,
        plan: of the pairs, in tiles of as many rows.
        x: of T tokens, as `activations` gives it for the format of `gate_up`.
        gate_up, down: as in `moe.experts`.
        parts: of the dtype of the model's activations.
    """
    _, slots, hidden = parts.shape
    count, _, intermediate = down.shape
    given, format_name = stored(gate_up)
    between = _between(parts, parts.shape[0] * slots, intermediate, stored(down)[1])
    if _by_roles(tile, parts, gate_up, down):
        from qcn_kernels.moe import triton_roles

        triton_roles.multiply(plan, x, given, stored(down)[0], between, parts)
        return
    _gate_up[(cdiv(2 * intermediate, tile.columns), plan.tiles)](
        x,
        given,
        plan.tensors,
        between,
        x[0].stride(0),
        SLOTS=slots,
        EXPERTS=count,
        HIDDEN=hidden,
        INTERMEDIATE=intermediate,
        FORMAT=format_name,
        QUANTISED=len(between) > 1,
        BM=tile.rows,
        TAIL=tile.tail,
        BN=tile.columns,
        BK=_columns(format_name),
        OPERAND=operand(format_name),
        HELD=tile.held,
        num_warps=tile.warps,
        num_stages=stages(tile.stages, x[0]),
        maxnreg=tile.registers,
    )
    _multiply_down(tile, plan, between, down, parts)


def _by_roles(tile: Tile, parts: Tensor, gate_up: Matrices, down: Matrices) -> bool:
    """Whether producers and consumers multiply: they take FP8, bf16 outputs and whole blocks.

    Nothing interprets them; what does not fit runs as on other chips, and gives the same bits.
    """
    if not tile.roles or INTERPRETED or parts.dtype != torch.bfloat16:
        return False
    from qcn_kernels.moe import triton_roles

    _, hidden, intermediate = down.shape
    formats = {stored(gate_up)[1], stored(down)[1]}
    return formats == {"e4m3"} and triton_roles.fits(intermediate, hidden)


def _multiply_down(
    tile: Tile, plan: Plan, between: tuple[Tensor, ...], down: Matrices, out: Tensor
) -> None:
    count, hidden, intermediate = down.shape
    given, format_name = stored(down)
    sizes = {"EXPERTS": count, "HIDDEN": hidden, "INTERMEDIATE": intermediate, "BM": tile.rows}
    sizes |= {"OPERAND": operand(format_name)}
    kept = tile.kept
    if kept is not None and format_name == "e4m3" and intermediate <= MOST_KEPT:
        _down_kept[(cdiv(hidden, kept.span), plan.tiles)](
            between,
            given,
            plan.tensors,
            out,
            TAIL=kept.tail,
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
        plan.tensors,
        out,
        FORMAT=format_name,
        TAIL=tile.tail,
        BN=tile.columns,
        BK=_columns(format_name),
        num_warps=tile.warps,
        num_stages=stages(tile.stages, between[0]),
        maxnreg=tile.registers,
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
