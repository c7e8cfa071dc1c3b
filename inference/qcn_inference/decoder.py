"""Decode on a GPU: one sequence at a time, at addresses that stay, as CUDA graphs.

A decoding step is a few hundred small kernels; launched one by one they take longer to launch than
to run. A graph holds them all and is launched at once, but it holds addresses too. So the sequence
that is decoded takes the *seat* (`seat.py`): its recurrent and convolution state are copied there
(75 MB of an 80 B model, from device memory to device memory) and its page table is kept up to date
there. Keys and values stay in their pages. When another sequence wants to decode, or somebody wants
the state itself, it is copied back.

A step over drafted tokens is likewise a graph, one for each number of rows. It leaves the state as
it is, and what the tokens would do to it in the seat; `commit` takes the first of them in. Should
another sequence sit down between the two, that is kept aside meanwhile.

Nothing here waits for the device: the token may be a tensor that was sampled a moment ago, and the
position counts itself. A graph is captured for each of a few bounds of the length, since what it
launches for attention depends on it: those of single tokens when the model is warmed up, of drafts
at the first use of their number of rows. Where capturing fails, steps are launched one by one: of
the sequence at hand where it was memory that did not suffice, else from then on.
"""

import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from qcn_kernels.gated_delta_net import Drafts, ring_from_state, state_from_ring
from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.device import give_back, is_lost, is_out_of_memory
from qcn_inference.device_memory import DeviceMemory
from qcn_inference.pages import PAGE
from qcn_inference.seat import MOST_ROWS, Layers, Seat

if TYPE_CHECKING:
    from qcn_inference.state import State

log = logging.getLogger(__name__)

FIRST_BOUND = 4096
"""Tokens; each further graph serves four times as many."""
WARM_UPS = 2
"""Steps before a graph is captured: kernels are compiled and libraries set up in them."""
TIMED = 5
"""Steps that are timed to know what one takes."""


class Kind(NamedTuple):
    """What a graph is of."""

    rows: int  # drafted tokens; 0: one token that is certain
    bound: int  # of the sequence's length


class Draft:
    """Tokens that were run behind a sequence, which waits for how many of them are taken in."""

    def __init__(self, decoder: "Decoder", state: "State", rows: int) -> None:
        self._decoder = decoder
        self._state = state
        self._rows = rows
        self._aside: Drafts | None = None  # what they would do, while another has the seat

    def put_aside(self, drafts: Drafts) -> None:
        """Keep a copy of what stands in the seat."""
        self._aside = Drafts(*(tensor.clone() for tensor in drafts.first(self._rows).tensors))

    def put_back(self, drafts: Drafts) -> None:
        """Copy that to the seat again."""
        assert self._aside is not None
        there = drafts.first(self._rows)
        for tensor, kept in zip(there.tensors, self._aside.tensors, strict=True):
            tensor.copy_(kept)
        self._aside = None

    def commit(self, tokens: int) -> None:
        """Take the first `tokens` in."""
        self._decoder.commit(self, self._state, tokens)


class Decoder:
    """Decodes the sequences of one model, one at a time."""

    def __init__(self, config: ModelConfig, memory: DeviceMemory, layers: Layers) -> None:
        self._layers = layers
        self._seat = Seat(config, memory)
        self._longest = min(memory.pool.size * PAGE, _whole_pages(config.max_position_embeddings))
        self._seated: weakref.ref[State] | None = None
        self._draft: weakref.ref[Draft] | None = None  # that stands in the seat
        self._pages = 0  # of the seated sequence, that the seat's table holds
        self._graphs: dict[Kind, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}
        self._memory_of_graphs: Any = None  # which they share: they never run at once
        self._spread = torch.arange(MOST_ROWS) * (config.vocab_size // MOST_ROWS)
        self.uses_graphs = memory.device.type == "cuda"

    def step(self, state: "State", token: int | Tensor) -> Tensor:
        """Read a token into `state`; return fp32 logits [vocab]. See `Model.decode`."""
        self._make_ready(state, 1)
        if isinstance(token, int):
            self._seat.tokens[:1].fill_(token)
        else:
            self._seat.tokens[:1].copy_(token)
        state.is_reading = True
        (logits,) = self._run(state, 0)
        state.end_pass(1)
        return logits

    def verify(self, state: "State", tokens: Tensor) -> tuple[Tensor, Tensor, Draft]:
        """Run drafted tokens [T] behind `state`, which is unusable until the draft is committed.

        Returns:
            Their hidden states [T, hidden] and logits [T, vocab], fp32; what is to be committed.

        Raises:
            ValueError: there are more than MOST_ROWS.
        """
        rows = len(tokens)
        if rows > MOST_ROWS:
            raise ValueError(f"{rows} drafted tokens; {MOST_ROWS} at most are verified at once")
        self._make_ready(state, rows)
        self._seat.tokens[:rows].copy_(tokens)
        state.is_reading = True
        hidden, logits = self._run(state, rows)
        draft = Draft(self, state, rows)
        self._draft = weakref.ref(draft)
        return hidden, logits, draft

    def commit(self, draft: Draft, state: "State", tokens: int) -> None:
        """Take the first `tokens` of what was verified into `state`."""
        if state.seated_in is not self:
            self._sit_down(state)
            draft.put_back(self._seat.drafts)
        self._draft = None
        self._seat.commit(tokens)
        state.end_pass(tokens)

    def _make_ready(self, state: "State", tokens: int) -> None:
        """Seat a sequence, with pages for so many more tokens."""
        state.require_usable()
        pages = state.grow(tokens)
        if state.seated_in is not self:
            self._sit_down(state)
        if self._pages < len(pages):
            table = self._seat.table
            new = torch.tensor(pages[self._pages :], dtype=torch.int32)
            table[self._pages : len(pages)] = new.to(table.device, non_blocking=True)
            self._pages = len(pages)

    def unseat(self, state: "State") -> None:
        """Give a seated sequence its state back."""
        part, seat = state.unseated, self._seat
        part.convolution.copy_(state_from_ring(seat.rings, state.position))
        part.recurrent.copy_(seat.recurrent)
        draft = self._draft() if self._draft is not None else None
        if draft is not None:
            draft.put_aside(seat.drafts)
        self._draft = None
        state.seated_in = None
        self._seated = None

    def _sit_down(self, state: "State") -> None:
        before = self._seated() if self._seated is not None else None
        if before is not None:
            self.unseat(before)
        part, seat = state.unseated, self._seat
        seat.rings.copy_(ring_from_state(part.convolution, state.position))
        seat.recurrent.copy_(part.recurrent)
        seat.position.fill_(state.position)
        seat.length.fill_(state.position)
        state.seated_in = self
        self._seated = weakref.ref(state)
        self._pages = 0

    def _bounds(self) -> list[int]:
        bounds = [FIRST_BOUND]
        while bounds[-1] < self._longest:
            bounds.append(4 * bounds[-1])
        return [*bounds[:-1], min(bounds[-1], self._longest)]

    def _bound_of(self, length: int) -> int:
        return next(bound for bound in self._bounds() if bound >= length)

    def drop_graphs(self) -> None:
        """Let go of all graphs, and of the memory that they share."""
        if self._seat.tokens.is_cuda:
            torch.cuda.synchronize(self._seat.tokens.device)  # one may be running
        self._graphs.clear()

    def _run(self, state: "State", rows: int) -> tuple[Tensor, ...]:
        kind = Kind(rows, self._bound_of(state.position + max(1, rows)))
        if self._may_capture(state) and kind not in self._graphs:
            self._capture(state, kind)
            if kind not in self._graphs:
                give_back()  # what the failed graph held, and its warm-up on a stream of its own
        if kind not in self._graphs:
            return self._seat.run(self._layers, *kind)
        graph, results = self._graphs[kind]
        graph.replay()
        return tuple(result.clone() for result in results)  # the next step writes there

    def _may_capture(self, state: "State") -> bool:
        return self.uses_graphs and state.captures_graphs

    def capture(self, state: "State", rows: Sequence[int]) -> dict[int, float]:
        """Capture the graphs of single tokens for all lengths, and those of drafts for short ones.

        Whatever `state` holds stays, but for the memory it takes.

        Args:
            state: short, with nothing under way.
            rows: of drafts.

        Returns:
            What a step over so many rows takes, as a multiple of a plain one, on this device; empty
            where there are no graphs.
        """
        self._make_ready(state, max(rows))
        self._seat.tokens.copy_(self._spread)
        first, *further = self._bounds()
        kinds = [Kind(0, first), *(Kind(count, first) for count in rows)]
        for kind in (*kinds, *(Kind(0, bound) for bound in further)):
            if self._may_capture(state) and kind not in self._graphs:
                self._capture(state, kind)
        if not all(kind in self._graphs for kind in kinds):
            return {}
        return self._relative_times(kinds)

    def _relative_times(self, kinds: Sequence[Kind]) -> dict[int, float]:
        seat = self._seat
        before = [tensor.clone() for tensor in seat.tensors]
        taken = {kind.rows: _median_ms(self._graphs[kind][0].replay) for kind in kinds}
        for tensor, value in zip(seat.tensors, before, strict=True):
            tensor.copy_(value)
        return {rows: taken[rows] / taken[0] for rows in taken if rows}

    def _capture(self, state: "State", kind: Kind) -> None:
        """Make a graph of a step; the seat is afterwards as before."""
        seat = self._seat
        before = [tensor.clone() for tensor in seat.tensors]
        if not self._graphs:
            self._memory_of_graphs = None  # went with the last of them
        try:
            graph = torch.cuda.CUDAGraph()
            if self._memory_of_graphs is None:
                self._memory_of_graphs = torch.cuda.graph_pool_handle()
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    for tensor, value in zip(seat.tensors, before, strict=True):
                        tensor.copy_(value)
                    seat.run(self._layers, *kind)
            torch.cuda.current_stream().wait_stream(aside)
            # A capture that cannot be ended leaves its stream the current one: this brings it back.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(
                    graph, pool=self._memory_of_graphs, capture_error_mode="thread_local"
                ),
            ):
                results = seat.run(self._layers, *kind)
        except RuntimeError as error:
            cause = _first_of(error)
            if is_lost(error) or is_lost(cause):
                raise
            self._end_broken_capture()
            state.captures_graphs = False
            self.uses_graphs = is_out_of_memory(cause)
            # Of CUDA or torch, about this program: it says nothing of what is decoded.
            reason = str(cause).partition("\n")[0]
            log.warning("decoding runs without CUDA graphs: %s", reason)
        else:
            self._graphs[kind] = graph, results
        finally:
            for tensor, value in zip(seat.tensors, before, strict=True):
                tensor.copy_(value)

    def _end_broken_capture(self) -> None:
        """Have torch's allocator know that a capture is over which CUDA could not end.

        torch leaves it under way: it would give no memory back any more, fail where it is asked to
        (`empty_cache`), and hold the memory of graphs for good.
        """
        pool = self._memory_of_graphs
        if pool is None:
            return
        with suppress(RuntimeError):  # it knows, or the capture had not begun
            device = self._seat.tokens.device.index
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)
            self._memory_of_graphs = None  # of pinned memory the books cannot be closed so


def _first_of(error: BaseException) -> BaseException:
    """Return what failed first: in the middle of a capture, to end it fails as well."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _whole_pages(tokens: int) -> int:
    return -(-tokens // PAGE) * PAGE


def _median_ms(replay: Callable[[], None]) -> float:
    """What launching a graph takes on the device, the host ahead of it."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(TIMED + 1)]  # type: ignore[no-untyped-call]
    replay()
    for mark in marks[:-1]:
        mark.record()
        replay()
    marks[-1].record()
    marks[-1].synchronize()
    return median(float(before.elapsed_time(after)) for before, after in pairwise(marks))
