"""Pairs of token and expert sorted by expert and cut into tiles, on a GPU.

A tile that is not full is padded, never shared by two experts. The order of an expert's pairs is
that of their tokens: nothing is decided by atomics.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import ALIGNED
from qcn_kernels.launch import cdiv, kernel, next_power_of_2

EXPERTS_AT_ONCE = 1024  # slots on a small card may be as many as all layers have experts
# Pairs are ranked within a block, SHORT_BLOCK by a program, by comparing with so many at once.
SHORT_BLOCK, LONG_BLOCK, RANKED_BY = 256, 1024, 16
SHORT_SORT = 16_384  # pairs for which there are blocks of the short kind
BLOCKS_AT_ONCE = 16  # whose counts are added up


@dataclass(frozen=True, slots=True)
class Plan:
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


def plan_tiles(chosen: Tensor, experts: int, rows: int) -> Plan:
    """Sort pairs by expert, stably, and cut each expert's into tiles of at most `rows`."""
    pairs = chosen.numel()
    block = SHORT_BLOCK if pairs <= SHORT_SORT else LONG_BLOCK
    blocks = cdiv(pairs, block)
    tiles = cdiv(pairs, rows) + min(experts, pairs)
    at_once = min(EXPERTS_AT_ONCE, next_power_of_2(experts))
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
        BB=BLOCKS_AT_ONCE,
        **sizes,
    )
    return Plan(tiles, order, expert, first, end)


@triton.jit
def is_tail(plan, i_tile, BM: tl.constexpr, TAIL: tl.constexpr):
    """Whether half of a tile's BM rows hold its pairs; no, where TAIL does not ask."""
    if TAIL:
        return tl.load(plan[3] + i_tile) - tl.load(plan[2] + i_tile) <= BM // 2
    return False


@triton.jit
def tile_rows(plan, i_tile, BM: tl.constexpr):
    """Places of a tile's pairs in the order, their numbers, and which rows are not padding."""
    end = tl.load(plan[3] + i_tile)
    o_row = tl.load(plan[2] + i_tile) + tl.arange(0, BM)
    here = o_row < end
    o_row = tl.minimum(o_row, end - 1)
    return o_row, tl.load(plan[0] + o_row), here
