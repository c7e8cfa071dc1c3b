"""The mixture of experts where most weights are in host memory.

Tokens. The experts that a token's router chose are looked for in the slots, and those that are
missing copied first. It is the device that looks, makes room and copies, by the kernels of
`qcn_kernels.expert_slots` and `copy_rows`: nothing waits for the host, and a CUDA graph holds a
whole step. A few tokens that are read together, as drafts are, go the same way. Where the plan says
that the CPU computes an expert in less time than the link carries it, it is the host that looks:
what is missing is computed on the CPU while the GPU computes the rest; then one of them is brought
as well, for the next time, while nobody waits for it.

Prefill. A chunk needs nearly every expert of every layer. Two windows of slots, one layer's worth
each (one where there is one layer), take turns: while a layer is computed from one, the next
layer's experts are copied into the other. Experts that are in slots outside the windows stay there
and are not copied. Of a short chunk that needs few of them the chosen experts alone are copied, to
slots of their own; a prompt that it interrupts begins to copy anew. A head for drafts is a layer
that no pass goes through, and takes them so as well.

Who has which slot is known to the host or to the device, by turns: what is asked for next takes the
tables over.

What a token gets is the sum over its experts, wherever they were computed.
"""

from collections.abc import Mapping, Sequence

import torch
from qcn_kernels.expert_slots import place
from qcn_kernels.moe import SharedExpert, add_experts, experts_step
from torch import Tensor

from qcn_inference.layers import ChosenExperts
from qcn_inference.offload.device import Event, ExpertDevice, Experts
from qcn_inference.offload.matrices import on_cpu
from qcn_inference.offload.slots import ExpertSlots

FEW = 2
"""A chunk that needs less than one in so many of a layer's experts has only those copied. With more
tokens there is more to compute, beside which the next layer is copied, and what is chosen would
push out of the slots most of what tokens have left there."""


def windows(layers: int) -> int:
    """The layers' worth of slots that a pass through so many takes turns in; at least one."""
    return max(1, min(2, layers))


class OffloadedExperts:
    """All layers' experts, of one format. One thread uses it."""

    def __init__(
        self,
        layers: Sequence[Experts],
        device: ExpertDevice,
        *,
        missing_on_cpu: bool,
        aside: int = 0,
    ) -> None:
        """Run layers' experts; the last `aside` of them are no part of a pass."""
        self._layers = layers
        self._device = device
        self._missing_on_cpu = missing_on_cpu
        self._size = len(layers[0])
        tables, self._there = device.tables(len(layers) * self._size)
        self.slots = ExpertSlots(tables, self._size)
        self._passed = len(layers) - aside
        self._in_windows = range(windows(self._passed) * self._size)
        if len(device.slots) < len(self._in_windows):
            raise ValueError(
                f"{len(device.slots)} slots, fewer than the {len(self._in_windows)} of the windows"
            )
        self._arrivals: dict[int, Event] = {}  # of copies under way, by slot
        self._last_use: dict[int, Event] = {}  # by slot
        self._tokens_used: Event | None = None  # any slot, while the device had the tables
        self._device_has_tables = False
        self._streaming = False
        self._windows: dict[int, dict[int, int]] = {}  # by layer: the slots of its experts

    @property
    def computes_missing(self) -> bool:
        """Whether tokens go through `step`; else they find all experts where `placed` says."""
        return self._missing_on_cpu

    def begin_tokens(self) -> None:
        """Let the device place experts; called before `placed`, and outside of CUDA graphs.

        What is copied is waited for by what is computed, not by the host.
        """
        if self._device_has_tables:
            return
        self._end_streaming()
        self._wait_for([*self._arrivals])
        self._there.copy_(self.slots.tables, non_blocking=True)
        self._last_use.clear()  # by what was computed, as all copies are from now on
        self._device_has_tables = True

    def placed(self, layer: int, chosen: Tensor) -> ChosenExperts:
        """Bring what a few tokens chose to the device, if it is not there.

        Nothing waits for the device: a CUDA graph may hold it. Behind `begin_tokens`.

        Args:
            layer: number among the layers with experts.
            chosen: [..., top_k] int64, on the device.
        """
        assert self._device_has_tables
        slots, rows = place(self._there, layer * self._size, chosen.flatten())
        self._device.fetch(self._layers[layer], rows)
        held = self._device.slots
        return {"gate_up": held.gate_up, "down": held.down, "chosen": slots.view_as(chosen)}

    def _take_tables_back(self) -> None:
        """Let the host place experts; waits for what was computed."""
        if self._device_has_tables:
            self.slots.tables.copy_(self._there)
            self._tokens_used = self._device.mark(range(len(self._device.slots)))
            self._device_has_tables = False

    def step(self, layer: int, x: Tensor, *, weights: Tensor, chosen: Tensor) -> Tensor:
        """Run one token through its experts, those that are missing on the CPU.

        Args:
            layer: number among the layers with experts.
            x: [hidden] of the weights' dtype, on the device.
            weights: [top_k] fp32.
            chosen: [top_k] int64.

        Returns:
            [hidden] fp32.
        """
        assert self._missing_on_cpu
        self._end_streaming()
        wanted: list[int] = chosen.tolist()  # the host computes some, and must know which
        found = self.slots.look(layer, wanted)
        here = [at for at, expert in enumerate(wanted) if expert in found]
        there = [at for at, expert in enumerate(wanted) if expert not in found]
        if there:  # fetched before the GPU has more to do: the CPU computes while it does that
            fetched = self._device.to_host(x), self._device.to_host(weights[there])
        out = torch.zeros(len(x), device=x.device)
        if here:
            out += self._on_device(x, weights, [found[wanted[at]] for at in here], here)
        if there:
            missing = [wanted[at] for at in there]
            out += self._on_host(layer, *fetched, missing).to(x.device)
            self._bring(layer, missing[:1])
        return out

    def _on_device(self, x: Tensor, weights: Tensor, slots: list[int], places: list[int]) -> Tensor:
        self._wait_for(slots)
        out = experts_step(
            x,
            weights=weights if len(places) == len(weights) else weights[places],
            chosen=self._device.numbers(slots),
            gate_up=self._device.slots.gate_up,
            down=self._device.slots.down,
        )
        self._used(slots)
        return out

    def _on_host(self, layer: int, x: Tensor, weights: Tensor, numbers: list[int]) -> Tensor:
        host, wanted = self._layers[layer], torch.tensor(numbers)
        return experts_step(
            x,
            weights=weights,
            chosen=torch.arange(len(numbers)),
            gate_up=on_cpu(host.gate_up, wanted, x.dtype),
            down=on_cpu(host.down, wanted, x.dtype),
        )

    def prefill(
        self,
        layer: int,
        to: Tensor,
        x: Tensor,
        *,
        weights: Tensor,
        chosen: Tensor,
        shared: SharedExpert,
    ) -> None:
        """Add T tokens' experts, and the shared one, to their residual stream `to` [T, hidden].

        The other shapes are as in `step`, with T in front.
        """
        if not self._missing_on_cpu and FEW * chosen.numel() < self._size:
            self.begin_tokens()
            add_experts(to, x, weights=weights, **self.placed(layer, chosen), shared=shared)
            return
        self._take_tables_back()
        needed: list[int] = torch.unique(chosen).tolist()
        are_few = layer >= self._passed or FEW * len(needed) < self._size
        if are_few and layer not in self._windows:
            self._end_streaming()  # of a pass that was interrupted: it begins to copy anew
            slots = self._bring(layer, needed)
        else:
            slots = self._window(layer)
            if not are_few and layer + 1 < self._passed:
                self._window(layer + 1)
        self._wait_for([slots[expert] for expert in needed])
        slot_of = self._device.numbers([slots.get(expert, 0) for expert in range(self._size)])
        add_experts(
            to,
            x,
            weights=weights,
            chosen=slot_of[chosen],
            gate_up=self._device.slots.gate_up,
            down=self._device.slots.down,
            shared=shared,
        )
        self._used(list(slots.values()))
        self._windows.pop(layer, None)
        if layer + 1 == self._passed:
            self._end_streaming()

    def _window(self, layer: int) -> dict[int, int]:
        """The slots of all experts of a layer; copies to them have begun."""
        if layer in self._windows:
            return self._windows[layer]
        if not self._streaming:
            self._streaming = True
            self.slots.clear(self._in_windows)
        found = self.slots.look(layer, range(self._size))
        missing = [expert for expert in range(self._size) if expert not in found]
        turn = layer % 2
        # A prompt that is read in turns with this one may have had the window for another layer.
        self._windows = {of: slots for of, slots in self._windows.items() if of % 2 != turn}
        placed = dict(zip(missing, range(turn * self._size, (turn + 1) * self._size), strict=False))
        self._copy(layer, placed)
        self._windows[layer] = found | placed
        return self._windows[layer]

    def _end_streaming(self) -> None:
        if self._streaming:
            self._streaming = False
            self._windows.clear()
            self.slots.give_back(self._in_windows)

    def _bring(self, layer: int, wanted: Sequence[int]) -> dict[int, int]:
        """Return slots of experts; those that had none are on their way there."""
        slots, missing = self.slots.place(layer, wanted)
        try:
            self._copy(layer, missing)
        except Exception:  # memory lacked, say: in these slots is anything
            self.slots.drop(layer, missing)
            raise
        return slots

    def _copy(self, layer: int, slots: Mapping[int, int]) -> None:
        """Begin to copy experts to these slots, by expert."""
        if not slots:
            return
        used = [slot for slot in slots.values() if slot in self._last_use]
        after = dict.fromkeys(self._last_use[slot] for slot in used)
        if self._tokens_used is not None:
            after[self._tokens_used] = None
        arrival = self._device.copy(self._layers[layer], slots, after)
        for slot in used:  # only now: what raised waits for them when it is begun again
            del self._last_use[slot]
        self._arrivals.update(dict.fromkeys(slots.values(), arrival))

    def _wait_for(self, slots: Sequence[int]) -> None:
        arrivals = (self._arrivals.pop(slot, None) for slot in slots)
        for arrival in dict.fromkeys(one for one in arrivals if one is not None):
            self._device.wait(arrival)

    def _used(self, slots: Sequence[int]) -> None:
        event = self._device.mark(slots)
        self._last_use.update(dict.fromkeys(slots, event))
