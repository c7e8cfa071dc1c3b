"""What offloading needs of a GPU: slots, copies beside what is computed, and their order."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Event = Any
"""A point in the order of what is computed or copied."""


class ExpertDevice(Protocol):
    """Slots for experts on a device. All calls come from the model's thread."""

    gate_up: Tensor  # [slots, 2 · intermediate, hidden]
    down: Tensor  # [slots, hidden, intermediate]

    def copy(self, gate_up: Tensor, down: Tensor, slot: int, after: Event | None) -> Event:
        """Begin to copy one expert, in pinned host memory, to a slot; return when it is there.

        It begins behind `after`: what was computed with the slot's former contents.
        """

    def wait(self, event: Event) -> None:
        """Let what is computed from now on wait for a copy."""

    def mark(self, slots: Sequence[int]) -> Event:
        """Return the point behind all that was computed so far, which read these slots."""


class CudaDevice:
    """A GPU of NVIDIA's: copies run on a stream of their own."""

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        self.gate_up = gate_up
        self.down = down
        self._copies = torch.cuda.Stream(gate_up.device)  # type: ignore[no-untyped-call]

    def copy(self, gate_up: Tensor, down: Tensor, slot: int, after: Event | None) -> Event:
        """Begin to copy one expert to a slot."""
        if after is not None:
            self._copies.wait_event(after)
        with torch.cuda.stream(self._copies):
            self.gate_up[slot].copy_(gate_up, non_blocking=True)
            self.down[slot].copy_(down, non_blocking=True)
            return self._copies.record_event()

    def wait(self, event: Event) -> None:
        """Let the current stream wait for a copy."""
        torch.cuda.current_stream(self.gate_up.device).wait_event(event)

    def mark(self, slots: Sequence[int]) -> Event:
        """Return an event behind what the current stream has been given."""
        del slots
        return torch.cuda.current_stream(self.gate_up.device).record_event()
