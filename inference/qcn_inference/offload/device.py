"""What offloading needs of a GPU: slots, copies beside what is computed, and their order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from qcn_kernels.copy_rows import copy_rows
from qcn_kernels.expert_slots import SlotTables
from qcn_kernels.moe import Matrices
from torch import Tensor

from qcn_inference.offload.matrices import mapped, parts_of

Event = Any
"""A point in the order of what is computed or copied."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A stack of experts: a layer's in host memory, pinned where a GPU copies them, or slots."""

    gate_up: Matrices  # [experts, 2 · intermediate, hidden], the gate's rows first
    down: Matrices  # [experts, hidden, intermediate]

    def __len__(self) -> int:
        """The number of experts."""
        return len(self.gate_up)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All tensors it consists of."""
        return parts_of(self.gate_up) + parts_of(self.down)

    @property
    def format(self) -> tuple[object, ...]:
        """What two stacks have alike where an expert of one may lie in a slot of the other."""
        return tuple((part.dtype, part.shape[1:]) for part in self.parts)

    @property
    def expert_bytes(self) -> int:
        """One expert's bytes."""
        return sum(part[0].nbytes for part in self.parts)


class ExpertDevice(Protocol):
    """Slots for experts on a device. All calls come from the model's thread."""

    slots: Experts

    def copy(self, host: Experts, slots: Mapping[int, int], after: Iterable[Event]) -> Event:
        """Begin to copy experts from host memory; return when all are there.

        Args:
            host: a layer's experts.
            slots: where each goes, by its number among them.
            after: what was computed with the slots' former contents.
        """

    def wait(self, event: Event) -> None:
        """Let what is computed from now on wait for a copy."""

    def fetch(self, host: Experts, rows: Tensor) -> None:
        """Copy experts to slots, as a part of what is computed: nobody else's copies are there.

        Args:
            host: a layer's experts.
            rows: [2, n] int64 on the device, experts and their slots, see `copy_rows`.
        """

    def tables(self, experts: int) -> tuple[SlotTables, SlotTables]:
        """Return tables of the slots for so many experts: the host's, and the device's."""

    def mark(self, slots: Sequence[int]) -> Event:
        """Return the point behind all that was computed so far, which read these slots."""

    def to_host(self, x: Tensor) -> Tensor:
        """Return a tensor in host memory; waits until all that was begun so far is computed."""

    def numbers(self, values: Sequence[int]) -> Tensor:
        """Return [n] int64 for what is computed from now on; waits for nothing."""


class CudaDevice:
    """A GPU of NVIDIA's: copies run on a stream of their own."""

    def __init__(self, slots: int, like: Experts, device: torch.device) -> None:
        """Take memory for slots. Raises torch.OutOfMemoryError."""

        def room(part: Tensor) -> Tensor:
            return torch.empty((slots, *part.shape[1:]), dtype=part.dtype, device=device)

        self.slots = Experts(mapped(like.gate_up, room), mapped(like.down, room))
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # The slots' memory may have been that of tensors which are still being written.
        self._copies.wait_stream(torch.cuda.current_stream(device))
        for part in self.slots.parts:  # nor is it others' memory while a copy to it is under way
            part.record_stream(self._copies)

    def copy(self, host: Experts, slots: Mapping[int, int], after: Iterable[Event]) -> Event:
        """Begin to copy experts to slots by a kernel: see `copy_rows`."""
        for event in after:
            self._copies.wait_event(event)
        with torch.cuda.stream(self._copies):
            self.fetch(host, self.numbers([*slots, *slots.values()]).view(2, -1))
            return self._copies.record_event()

    def fetch(self, host: Experts, rows: Tensor) -> None:
        """Copy on the current stream; a CUDA graph may hold it."""
        copy_rows(host.parts, self.slots.parts, rows)

    def tables(self, experts: int) -> tuple[SlotTables, SlotTables]:
        """Return tables, the host's in pinned memory."""
        slots = len(self.slots)
        return (
            SlotTables.empty(experts, slots, torch.device("cpu"), pinned=True),
            SlotTables.empty(experts, slots, self._device),
        )

    def wait(self, event: Event) -> None:
        """Let the current stream wait for a copy."""
        torch.cuda.current_stream(self._device).wait_event(event)

    def mark(self, slots: Sequence[int]) -> Event:
        """Return an event behind what the current stream has been given."""
        del slots
        return torch.cuda.current_stream(self._device).record_event()

    def to_host(self, x: Tensor) -> Tensor:
        """Copy, and wait for it."""
        return x.cpu()

    def numbers(self, values: Sequence[int]) -> Tensor:
        """Copy from pinned memory: from other memory torch waits for all that was begun."""
        pinned = torch.tensor(values, pin_memory=True)
        return pinned.to(self._device, non_blocking=True)
