"""Decode on a GPU: one sequence at a time, at addresses that stay, as a CUDA graph.

A decoding step is a few hundred small kernels; launched one by one they take longer to launch than
to run. A graph holds them all and is launched at once, but it holds addresses too. So the sequence
that is decoded takes a *seat*: its recurrent and convolution state are copied there (75 MB of an
80 B model, from device memory to device memory) and its page table is kept up to date there. Keys
and values stay in their pages. When another sequence wants to decode, or somebody wants the state
itself, it is copied back.

Nothing here waits for the device: the token may be a tensor that was sampled a moment ago, and the
position counts itself. A graph is captured for each of a few bounds of the length, since what it
launches for attention depends on it. Where capturing fails, steps are launched one by one: of the
sequence at hand where it was memory that did not suffice, else from then on.
"""

import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from qcn_kernels.gated_delta_net import (
    DeltaNetWeights,
    ring_from_state,
    state_from_ring,
    step,
)
from qcn_kernels.paged_attention import PagedKv, append, paged_attention_decode
from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.device import give_back, is_lost, is_out_of_memory
from qcn_inference.device_memory import DeviceMemory
from qcn_inference.pages import PAGE

if TYPE_CHECKING:
    from qcn_inference.state import State

log = logging.getLogger(__name__)

FIRST_BOUND = 4096
"""Tokens; each further graph serves four times as many."""
WARM_UPS = 2
"""Steps before a graph is captured: kernels are compiled and libraries set up in them."""

Layers = Callable[[Tensor, Tensor, "Seat"], Tensor]
"""A model's layers for a token [1] at a position [1]: fp32 logits [vocab]."""


class Seat:
    """What a decoding step reads and writes, beside the pages."""

    def __init__(self, config: ModelConfig, memory: DeviceMemory) -> None:
        layers = config.layer_types.count("linear_attention")
        device, pool = memory.device, memory.pool
        heads, key_dim = config.linear_num_value_heads, config.linear_key_head_dim
        kernel, channels = config.linear_conv_kernel_dim, config.linear_conv_dim
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.length = torch.zeros(1, dtype=torch.int32, device=device)
        self.table = torch.zeros(pool.size, dtype=torch.int32, device=device)
        self.rings = torch.zeros(layers, kernel, channels, device=device)
        self.recurrent = torch.zeros(
            layers, heads, key_dim, config.linear_value_head_dim, device=device
        )
        self._pool = pool
        self._bound = 0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a step changes."""
        return self.position, self.length, self.rings, self.recurrent

    def step(self, layers: Layers, bound: int) -> Tensor:
        """Read the token; return logits. The sequence has at most `bound` tokens then."""
        self.length += 1
        self._bound = bound
        logits = layers(self.token, self.position, self)
        self.position += 1
        return logits

    def mix_step(self, slot: int, projected: Tensor, weights: DeltaNetWeights) -> Tensor:
        """As `State.mix_step`."""
        return step(
            projected,
            weights=weights,
            ring=self.rings[slot],
            position=self.position,
            recurrent=self.recurrent[slot],
        )

    def attend_step(self, slot: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `State.attend_step`."""
        keys, values = self._pool.keys[slot], self._pool.values[slot]
        kv = PagedKv(keys, values, self.table, self.length, max_length=self._bound)
        append(kv, k=k[None], v=v[None])
        return paged_attention_decode(q[None], kv)[0]


class Decoder:
    """Decodes the sequences of one model, one at a time."""

    def __init__(self, config: ModelConfig, memory: DeviceMemory, layers: Layers) -> None:
        self._config = config
        self._layers = layers
        self._seat = Seat(config, memory)
        self._longest = memory.pool.size * PAGE
        self._seated: weakref.ref[State] | None = None
        self._pages = 0  # of the seated sequence, that the seat's table holds
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.uses_graphs = memory.device.type == "cuda"

    def step(self, state: "State", token: int | Tensor) -> Tensor:
        """Read a token into `state`; return fp32 logits [vocab]. See `Model.decode`."""
        state.require_usable()
        pages = state.grow(1)
        seat = self._seat
        if state.seated_in is not self:
            self._sit_down(state)
        if self._pages < len(pages):
            new = torch.tensor(pages[self._pages :], dtype=torch.int32)
            seat.table[self._pages : len(pages)] = new.to(seat.table.device, non_blocking=True)
            self._pages = len(pages)
        if isinstance(token, int):
            seat.token.fill_(token)
        else:
            seat.token.copy_(token)
        state.is_reading = True
        logits = self._run(state, self._bound_of(state.position + 1))
        state.end_pass(1)
        return logits

    def unseat(self, state: "State") -> None:
        """Give a seated sequence its state back."""
        part, seat = state.unseated, self._seat
        part.convolution.copy_(state_from_ring(seat.rings, state.position))
        part.recurrent.copy_(seat.recurrent)
        state.seated_in = None
        self._seated = None

    def _sit_down(self, state: "State") -> None:
        before = self._seated() if self._seated is not None else None
        if before is not None:
            self.unseat(before)
        part, seat = state.recurrent, self._seat
        seat.rings.copy_(ring_from_state(part.convolution, state.position))
        seat.recurrent.copy_(part.recurrent)
        seat.position.fill_(state.position)
        seat.length.fill_(state.position)
        state.seated_in = self
        self._seated = weakref.ref(state)
        self._pages = 0

    def _bound_of(self, length: int) -> int:
        bound = FIRST_BOUND
        while bound < length:
            bound *= 4
        return min(bound, self._longest)

    def drop_graphs(self) -> None:
        """Let go of all graphs, and of the memory that each keeps to itself."""
        if self._seat.token.is_cuda:
            torch.cuda.synchronize(self._seat.token.device)  # one may be running
        self._graphs.clear()

    def _run(self, state: "State", bound: int) -> Tensor:
        if self.uses_graphs and state.captures_graphs and bound not in self._graphs:
            self._capture(state, bound)
            if bound not in self._graphs:
                give_back()  # what the failed graph held, and its warm-up on a stream of its own
        if bound not in self._graphs:
            return self._seat.step(self._layers, bound)
        graph, logits = self._graphs[bound]
        graph.replay()
        return logits.clone()  # the next step writes there

    def _capture(self, state: "State", bound: int) -> None:
        """Make a graph of a step; the seat is afterwards as before."""
        seat = self._seat
        before = [tensor.clone() for tensor in seat.tensors]
        try:
            graph = torch.cuda.CUDAGraph()
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    for tensor, value in zip(seat.tensors, before, strict=True):
                        tensor.copy_(value)
                    seat.step(self._layers, bound)
            torch.cuda.current_stream().wait_stream(aside)
            # A capture that cannot be ended leaves its stream the current one: this brings it back.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                logits = seat.step(self._layers, bound)
        except RuntimeError as error:
            if is_lost(error):
                raise
            state.captures_graphs = False
            self.uses_graphs = is_out_of_memory(error)
            # Of CUDA or torch, about this program: it says nothing of what is decoded.
            reason = str(error).partition("\n")[0]
            log.warning("decoding runs without CUDA graphs: %s", reason)
        else:
            self._graphs[bound] = graph, logits
        finally:
            for tensor, value in zip(seat.tensors, before, strict=True):
                tensor.copy_(value)
