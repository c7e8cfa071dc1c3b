"""A device for experts with a clock of its own: nothing on it depends on this machine's speed.

The host is taken to run ahead of the device as far as it may: a copy begins as soon as the link is
free and what it says it comes after is done. Its contents appear in its slot when what is computed
has waited for it, and not before: who forgets to wait computes with NaN. Who copies over what is
still being read is told so at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Copied:
    """A copy under way."""

    slot: int
    gate_up: Tensor
    down: Tensor
    at: float  # seconds on the device's clock


@dataclass(eq=False)
class Computed:
    """A point behind what was computed."""

    at: float


class SimulatedDevice:
    """Slots in this process's memory; copies take a second for each `link` bytes."""

    def __init__(self, slots: int, gate_up: Tensor, down: Tensor, *, link: float) -> None:
        """Make slots for experts like these, stacked as a layer has them."""
        self.gate_up = torch.full((slots, *gate_up.shape[1:]), torch.nan, dtype=gate_up.dtype)
        self.down = torch.full((slots, *down.shape[1:]), torch.nan, dtype=down.dtype)
        self.compute_seconds = 0.0
        """What is computed between two marks takes so long."""
        self.now = 0.0
        self.waited = 0.0
        """Seconds in which nothing was computed, because a copy was not there yet."""
        self.copied_bytes = 0
        self._link = link
        self._link_free = 0.0
        self._read_until = [0.0] * slots
        self._newest: dict[int, Copied] = {}

    def copy(self, gate_up: Tensor, down: Tensor, slot: int, after: Computed | None) -> Copied:
        start = max(self._link_free, after.at if after else 0.0)
        assert start >= self._read_until[slot], f"slot {slot} is overwritten while it is read"
        self.gate_up[slot] = torch.nan
        self.down[slot] = torch.nan
        size = gate_up.nbytes + down.nbytes
        self.copied_bytes += size
        self._link_free = start + size / self._link
        copied = Copied(slot, gate_up.clone(), down.clone(), self._link_free)
        self._newest[slot] = copied
        return copied

    def wait(self, event: Copied) -> None:
        assert self._newest.get(event.slot) is event, "this copy was overwritten by another"
        self.waited += max(0.0, event.at - self.now)
        self.now = max(self.now, event.at)
        self.gate_up[event.slot] = event.gate_up
        self.down[event.slot] = event.down

    def mark(self, slots: Sequence[int]) -> Computed:
        self.now += self.compute_seconds
        for slot in slots:
            self._read_until[slot] = self.now
        return Computed(self.now)
