"""Slots for experts, by torch."""

import torch
from torch import Tensor

from qcn_kernels.expert_slots.tables import SLOT_BITS, SlotTables


def place(tables: SlotTables, first: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Give slots to experts of a layer that have none, at the cost of those unused for longest.

    Those that are chosen count as used, all at one time, and lose no slot. Of slots whose experts
    are unused for as long, the one of the lowest number is taken.

    Args:
        tables: are changed; they have at least as many slots in use as different experts
            are chosen.
        first: the number of the layer's first expert.
        chosen: [n] int64, numbers in the layer, some perhaps more than once.

    Returns:
        The slots [n] int64, and what is to be copied to them: rows [2, n] int64 of experts, by
        their numbers in the layer, and slots, in the order in which they were chosen; -1 behind
        the last.
    """
    numbers = chosen + first
    now = int(tables.clock.add_(1))
    slots = tables.slot_of[numbers]
    tables.used[slots[slots >= 0].long()] = now
    missing = list(dict.fromkeys(numbers[slots < 0].tolist()))
    age = (tables.used << SLOT_BITS) | torch.arange(len(tables.used))
    taken = age.topk(len(missing), largest=False).indices
    former = tables.expert_of[taken]
    tables.slot_of[former[former >= 0].long()] = -1
    rows = torch.full((2, len(chosen)), -1)
    if missing:
        wanted = torch.tensor(missing)
        tables.slot_of[wanted] = taken.int()
        tables.expert_of[taken] = wanted.int()
        tables.used[taken] = now
        rows[0, : len(missing)], rows[1, : len(missing)] = wanted - first, taken
    return tables.slot_of[numbers].long(), rows
