"""A device for experts with a clock of its own: nothing on it depends on this machine's speed.

The host is taken to run ahead of the device as far as it may: a copy begins as soon as the link is
free and what it says it comes after is done. Its contents appear in its slot when what is computed
has waited for it, and not before: who forgets to wait computes with NaN. Who copies over what is
still being read is told so at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from qcn_inference.offload.device import Experts
from qcn_inference.offload.matrices import mapped
from qcn_kernels.expert_slots import SlotTables
from torch import Tensor

CPU = torch.device("cpu")


@dataclass(eq=False)
class Copied:
    """Copies under way."""

    parts: dict[int, list[Tensor]]  # by slot
    at: float  # seconds on the device's clock


@dataclass(eq=False)
class Computed:
    """A point behind what was computed."""

    at: float


class SimulatedDevice:
    """Slots in this process's memory; copies take a second for each `link` bytes."""

    def __init__(self, slots: int, like: Experts, *, link: float) -> None:
        """Make slots for experts like these, stacked as a layer has them."""

        def room(part: Tensor) -> Tensor:
            return torch.full_like(part[:1], _nobody_wrote(part)).repeat_interleave(slots, dim=0)

        self.slots = Experts(mapped(like.gate_up, room), mapped(like.down, room))
        self.compute_seconds = 0.0
        """What is computed between two marks takes so long."""
        self.now = 0.0
        self.waited = 0.0
        """Seconds in which nothing was computed, because a copy was not there yet."""
        self.fetched_at: list[float] = []
        """When the host had what it asked for."""
        self.copied_bytes = 0
        self._link = link
        self._link_free = 0.0
        self._read_until = [0.0] * slots
        self._newest: dict[int, Copied] = {}
        self._under_way: set[int] = set()  # slots, which no computation has waited for

    def copy(self, host: Experts, slots: Mapping[int, int], after: Iterable[Computed]) -> Copied:
        start = max([self._link_free, *(computed.at for computed in after)])
        self._link_free = start + len(slots) * host.expert_bytes / self._link
        self.copied_bytes += len(slots) * host.expert_bytes
        copied = Copied({}, self._link_free)
        for expert, slot in slots.items():
            assert start >= self._read_until[slot], f"slot {slot} is overwritten while it is read"
            for part in self.slots.parts:
                part[slot] = _nobody_wrote(part)
            copied.parts[slot] = [part[expert].clone() for part in host.parts]
            self._newest[slot] = copied
            self._under_way.add(slot)
        return copied

    def fetch(self, host: Experts, rows: Tensor) -> None:
        experts, slots = rows[:, rows[0] >= 0]
        under_way = [slot for slot in slots.tolist() if slot in self._under_way]
        assert not under_way, f"copies to the slots {under_way} are under way, and may come later"
        self.copied_bytes += len(slots) * host.expert_bytes
        self.waited += len(slots) * host.expert_bytes / self._link
        self.now += len(slots) * host.expert_bytes / self._link
        for source, target in zip(host.parts, self.slots.parts, strict=True):
            target[slots] = source[experts]

    def tables(self, experts: int) -> tuple[SlotTables, SlotTables]:
        ours, theirs = (SlotTables.empty(experts, len(self.slots), CPU) for _ in range(2))
        return ours, theirs

    def wait(self, event: Copied) -> None:
        still = [slot for slot in event.parts if self._newest[slot] is event]
        assert still, "these copies were overwritten by others"
        self.waited += max(0.0, event.at - self.now)
        self.now = max(self.now, event.at)
        for slot in still:
            self._under_way.discard(slot)
            for target, part in zip(self.slots.parts, event.parts[slot], strict=True):
                target[slot] = part

    def mark(self, slots: Sequence[int]) -> Computed:
        self.now += self.compute_seconds
        for slot in slots:
            self._read_until[slot] = self.now
        return Computed(self.now)

    def to_host(self, x: Tensor) -> Tensor:
        self.fetched_at.append(self.now)
        return x

    def numbers(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values)


def _nobody_wrote(part: Tensor) -> float:
    return torch.nan if part.is_floating_point() else 0
