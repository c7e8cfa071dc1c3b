"""Which expert has which slot, as tensors that the host and a GPU take turns to keep."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

SLOT_BITS = 20
MOST_SLOTS = 1 << SLOT_BITS
OUT_OF_USE = 1 << 40
"""The time of a slot that is given to nobody: later than all others."""


@dataclass(frozen=True, slots=True)
class SlotTables:
    """Experts are numbered through all layers, slots from 0."""

    slot_of: Tensor  # [experts] int32; -1: it has none
    expert_of: Tensor  # [slots] int32; -1: it holds none
    used: Tensor  # [slots] int64: the time of the last use; 0: it holds none
    clock: Tensor  # [1] int64: the time, which each `place` advances by 1

    @classmethod
    def empty(
        cls, experts: int, slots: int, device: torch.device, *, pinned: bool = False
    ) -> "SlotTables":
        """Return tables of slots that hold nothing."""
        if slots >= MOST_SLOTS:
            raise ValueError(f"{slots} slots, more than the {MOST_SLOTS - 1} that are told apart")
        none = partial(torch.full, fill_value=-1, dtype=torch.int32)
        never = partial(torch.zeros, dtype=torch.int64)
        return cls(
            slot_of=none((experts,), device=device, pin_memory=pinned),
            expert_of=none((slots,), device=device, pin_memory=pinned),
            used=never(slots, device=device, pin_memory=pinned),
            clock=never(1, device=device, pin_memory=pinned),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.slot_of, self.expert_of, self.used, self.clock

    def copy_(self, other: "SlotTables", *, non_blocking: bool = False) -> None:
        """Become what others are."""
        for own, value in zip(self.tensors, other.tensors, strict=True):
            own.copy_(value, non_blocking=non_blocking)
