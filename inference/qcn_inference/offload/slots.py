"""Which expert has which place on the GPU, while it is the host that says so.

Least recently used goes first. The tables are those of `qcn_kernels.expert_slots`, which a GPU
keeps in its turn.
"""

from collections.abc import Iterable, Sequence

import torch
from qcn_kernels.expert_slots import OUT_OF_USE, SlotTables, reference
from torch import Tensor


class ExpertSlots:
    """Tables on the host."""

    def __init__(self, tables: SlotTables, experts: int) -> None:
        """Keep tables of layers that have so many experts each."""
        self.tables = tables
        self._experts = experts

    def look(self, layer: int, experts: Sequence[int]) -> dict[int, int]:
        """Tell the slots of those that have one; counts them as used."""
        slots = self.tables.slot_of[self._numbers(layer, experts)]
        held = slots >= 0
        self.tables.used[slots[held].long()] = int(self.tables.clock.add_(1))
        return {experts[at]: int(slots[at]) for at in held.nonzero().flatten().tolist()}

    def place(self, layer: int, experts: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
        """Give places to experts that have none, at the cost of those unused for longest.

        What was just looked for keeps its place, as long as there are places for all of it.

        Returns:
            The slots of all of them, and of those that had none.
        """
        chosen = torch.tensor(experts, dtype=torch.int64)
        slots, rows = reference.place(self.tables, layer * self._experts, chosen)
        given = rows[:, rows[0] >= 0].tolist()
        return dict(zip(experts, slots.tolist(), strict=True)), dict(zip(*given, strict=True))

    def drop(self, layer: int, experts: Iterable[int]) -> None:
        """Take their places from experts that have some."""
        numbers = self._numbers(layer, [*experts])
        slots = self.tables.slot_of[numbers].long()
        self.tables.slot_of[numbers] = -1
        self.tables.expert_of[slots], self.tables.used[slots] = -1, 0

    def clear(self, slots: range) -> None:
        """Take these slots out of use; `give_back` ends it."""
        there = slice(slots.start, slots.stop)
        former = self.tables.expert_of[there]
        self.tables.slot_of[former[former >= 0].long()] = -1
        self.tables.expert_of[there], self.tables.used[there] = -1, OUT_OF_USE

    def give_back(self, slots: range) -> None:
        """Take slots that were cleared into use again; they hold nothing."""
        self.tables.used[slots.start : slots.stop] = 0

    def _numbers(self, layer: int, experts: Sequence[int]) -> Tensor:
        return torch.tensor(experts, dtype=torch.int64) + layer * self._experts
