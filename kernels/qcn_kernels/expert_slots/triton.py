"""Slots for experts, by one program: the layers of a token ask one after the other."""

import triton.language as tl
from torch import Tensor

from qcn_kernels.expert_slots.tables import SLOT_BITS, SlotTables
from qcn_kernels.launch import kernel, next_power_of_2

BLOCK, WARPS = 4096, 16  # slots that are looked at at once
LATEST = (1 << 63) - 1


@kernel(do_not_specialize=["first"])
def _place(
    p_chosen,  # [N] int64
    p_slot_of,  # [experts] int32
    p_expert_of,  # [SLOTS] int32
    p_used,  # [SLOTS] int64
    p_clock,  # [1] int64
    p_slots,  # [N] int64
    p_rows,  # [2, N] int64
    first,
    N: tl.constexpr,
    BN: tl.constexpr,
    SLOTS: tl.constexpr,
    BS: tl.constexpr,
    SLOT_BITS: tl.constexpr,
    LATEST: tl.constexpr,
):
    """Time and number of a slot make one integer: the next to be taken is the least above the last.

    Barriers stand where one thread writes what others have read or are to read.
    """
    o = tl.arange(0, BN)
    inside = o < N
    b_chosen = tl.load(p_chosen + o, mask=inside, other=-1).to(tl.int32)
    b_slot = tl.load(p_slot_of + first + b_chosen, mask=inside, other=0)
    now = tl.load(p_clock) + 1
    tl.store(p_used + b_slot, now, mask=inside & (b_slot >= 0))
    b_from = tl.full([BN], -1, tl.int32)
    b_to = tl.full([BN], -1, tl.int32)
    last = tl.full([], -1, tl.int64)
    turn = 0
    missing = tl.min(tl.where(inside & (b_slot < 0), o, BN), axis=0)
    tl.debug_barrier()
    while missing < BN:
        b_next = tl.full([BS], LATEST, tl.int64)
        for at in range(0, SLOTS, BS):
            o_s = at + tl.arange(0, BS)
            b_used = tl.load(p_used + o_s, mask=o_s < SLOTS, other=LATEST >> SLOT_BITS)
            b_age = (b_used << SLOT_BITS) | o_s
            b_next = tl.minimum(b_next, tl.where(b_age > last, b_age, LATEST))
        last = tl.min(b_next, axis=0)
        slot = (last & ((1 << SLOT_BITS) - 1)).to(tl.int32)
        expert = tl.sum(tl.where(o == missing, b_chosen, 0), axis=0)
        former = tl.load(p_expert_of + slot)
        tl.debug_barrier()
        tl.store(p_slot_of + former, -1, mask=former >= 0)
        tl.store(p_slot_of + first + expert, slot)
        tl.store(p_expert_of + slot, first + expert)
        b_slot = tl.where(b_chosen == expert, slot, b_slot)
        b_from, b_to = tl.where(o == turn, expert, b_from), tl.where(o == turn, slot, b_to)
        missing = tl.min(tl.where(inside & (b_slot < 0), o, BN), axis=0)
        turn += 1
    tl.store(p_used + b_slot, now, mask=inside)
    tl.store(p_clock, now)
    tl.store(p_slots + o, b_slot.to(tl.int64), mask=inside)
    tl.store(p_rows + o, b_from.to(tl.int64), mask=inside)
    tl.store(p_rows + N + o, b_to.to(tl.int64), mask=inside)


def place(tables: SlotTables, first: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Give slots to experts, as `reference.place`."""
    (count,) = chosen.shape
    slots = len(tables.used)
    assert all(tensor.is_contiguous() for tensor in (chosen, *tables.tensors))
    placed = chosen.new_empty(count)
    rows = chosen.new_empty(2, count)
    _place[(1,)](
        chosen,
        *tables.tensors,
        placed,
        rows,
        first,
        N=count,
        BN=next_power_of_2(count),
        SLOTS=slots,
        BS=min(BLOCK, next_power_of_2(slots)),
        SLOT_BITS=SLOT_BITS,
        LATEST=LATEST,
        num_warps=WARPS,
    )
    return placed, rows
