"""What a sequence leaves behind: recurrent and convolution state, KV cache, position. One value.

Ownership. A `State` belongs to whoever made or forked it; `Model` mutates it in place while it
reads tokens. Forks never see each other's tokens.

A fork copies the recurrent and convolution parts (their size does not depend on the length) and
shares the keys and values, which are append-only. Where both lie is the business of a `Memory`:
`memory.py` on the CPU, `device_memory.py` on a GPU.

A pass is what goes through all layers at once: the blocks (`grid.py`) that follow each other in
it have each a chunk grid of their own. Checkpoints behind chosen blocks inside a pass are taken
while it runs, and can be had until the next one begins.

It is saved and restored in parts, through `recurrent_part`, `kv_of` and `put_together`: by blocks
in memory (`state_cache.py`) and on disk (`disk_entry.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from qcn_kernels.fp8 import Activations
from qcn_kernels.gated_delta_net import (
    DeltaNetWeights,
    DraftedDeltaNet,
    prefill,
    step_on_cpu,
    verify,
)
from qcn_kernels.gated_delta_rule import ChunkGrid, chunk_grid
from qcn_kernels.linear import Weight
from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.kept import DeltaNetState, KvBlock, RecurrentPart
from qcn_inference.memory import Memory
from qcn_inference.page_table import PageTable

if TYPE_CHECKING:
    from qcn_inference.decoder import Decoder


@dataclass(frozen=True, slots=True)
class _Pass:
    """The tokens that are being read, and the checkpoints taken among them."""

    grid: ChunkGrid
    start: int  # position
    kept: tuple[int, ...]  # tokens of the pass in front of each checkpoint, rising
    convolution: Tensor  # [layers, checkpoints, kernel - 1, channels] fp32
    recurrent: Tensor  # [layers, checkpoints, value_heads, key_dim, value_dim] fp32

    def checkpoint(self, tokens: int) -> RecurrentPart:
        """Return the one behind so many tokens of the pass; views."""
        slot = self.kept.index(tokens)
        return RecurrentPart(self.convolution[:, slot], self.recurrent[:, slot])


class State:
    """One sequence's past, for one model. `Model.new_state` and `fork` make it."""

    position: int  # tokens read so far

    def __init__(self, config: ModelConfig, memory: Memory) -> None:
        """Make the state of an empty sequence."""
        self.position = 0
        self.is_reading = False
        self.seated_in: Decoder | None = None  # where the recurrent part is meanwhile
        self.captures_graphs = True  # False where memory is short: what there is, is used
        self._config = config
        self._memory = memory
        self._hold(RecurrentPart.of_nothing(config, memory.device))
        self._nothing_under_way()
        self._kv = memory.new_kv(self)

    def _hold(self, part: RecurrentPart) -> None:
        self._recurrent = part
        self._layers = part.layers()

    def _nothing_under_way(self) -> None:
        self._pass: _Pass | None = None
        self._drafted: list[DraftedDeltaNet] | None = None  # layer by layer

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors; shared KV buffers count in full in every state that shares them."""
        part = self._recurrent
        return part.convolution.nbytes + part.recurrent.nbytes + self._kv.nbytes

    @torch.inference_mode()
    def fork(self) -> "State":
        """Return an independent state of the same sequence; copies no keys and values."""
        part = self.recurrent.mapped(torch.clone)
        fork = object.__new__(State)
        fork.position = self.position
        fork._config, fork._memory = self._config, self._memory
        fork.is_reading = False
        fork.seated_in = None
        fork.captures_graphs = self.captures_graphs
        fork._hold(part)
        fork._nothing_under_way()
        fork._kv = self._kv.fork(fork)
        return fork

    @property
    def recurrent(self) -> RecurrentPart:
        """What does not grow with the text, where it belongs."""
        self.require_usable()
        if self.seated_in is not None:
            self.seated_in.unseat(self)
        return self._recurrent

    @property
    def deltanet(self) -> tuple[DeltaNetState, ...]:
        """The same, layer by layer."""
        return self.recurrent.layers()

    # What `Decoder` uses.

    @property
    def unseated(self) -> RecurrentPart:
        """Where the recurrent part belongs, whatever is there."""
        return self._recurrent

    def grow(self, tokens: int) -> list[int]:
        """Have pages for `tokens` more; return all of this sequence's, on a GPU."""
        assert isinstance(self._kv, PageTable)
        self._kv.grow(self.position + tokens)
        return self._kv.pages

    # Its parts, for a cache that keeps them apart.

    @torch.inference_mode()
    def kv_of(self, start: int, stop: int) -> KvBlock:
        """Return a copy of the keys and values of the tokens from `start` to `stop`."""
        self.require_usable()
        return self._kv.cut(start, stop)

    @torch.inference_mode()
    def recurrent_part(self, at: int | None = None) -> tuple[DeltaNetState, ...]:
        """Return a copy of what does not grow with the text: recurrent and convolution state.

        It is that behind `at` tokens: `position`, or where the last pass kept a checkpoint.
        """
        if at is None or at == self.position:
            return self._memory.keep(self.recurrent.mapped(torch.clone))
        assert self._pass is not None
        part = self._pass.checkpoint(at - self._pass.start)
        return self._memory.keep(part.mapped(torch.clone))

    @torch.inference_mode()
    def put_together(
        self, blocks: Sequence[KvBlock], recurrent: Sequence[DeltaNetState], position: int
    ) -> None:
        """Become the state behind `position` tokens, whose parts are given; they are copied."""
        self.position = position
        self._kv = self._memory.kv_of(blocks, self)
        self._memory.restore(tuple(recurrent), self.recurrent)

    # What `Model` and its layers call while they read tokens.

    def require_usable(self) -> None:
        """Raise RuntimeError if a read of tokens into this state was begun and never finished."""
        if self.is_reading:
            raise RuntimeError("this state was left in the middle of a prefill; start from a fork")

    def begin_pass(self, parts: Sequence[int], keep: Sequence[int]) -> None:
        """Make room for a pass; the state is unusable by others until `end_pass`.

        Args:
            parts: tokens of each of its blocks.
            keep: tokens of the pass in front of each checkpoint that is to be taken inside it;
                each the end of a block.
        """
        recurrent = self.recurrent.recurrent
        self._pass = None  # gives its memory back
        tokens = sum(parts)
        self.begin_step(tokens)
        layers, *matrix = recurrent.shape
        inputs = self._recurrent.convolution.shape[1:]
        self._pass = _Pass(
            grid=chunk_grid(parts, checkpoints=keep, device=self._memory.device),
            start=self.position,
            kept=tuple(keep),
            convolution=recurrent.new_empty(layers, len(keep), *inputs),
            recurrent=recurrent.new_empty(layers, len(keep), *matrix),
        )

    def end_pass(self, tokens: int) -> None:
        """Declare the tokens read: every layer has taken them in."""
        self.position += tokens
        self.is_reading = False

    def begin_draft(self, tokens: int) -> None:
        """Make room for tokens of which it is known only afterwards how many stay."""
        if self.seated_in is not None:
            self.seated_in.unseat(self)
        self.begin_step(tokens)
        self._drafted = []

    def end_draft(self, tokens: int) -> None:
        """Declare the first `tokens` of a draft read, and the others not."""
        for layer in self._drafted or ():
            layer.commit(tokens)
        self._drafted = None
        self.end_pass(tokens)

    def begin_step(self, tokens: int = 1) -> None:
        """Make room for tokens; the state is unusable by others until `end_pass`."""
        self.require_usable()
        self._kv = self._kv.with_room(self, tokens)
        self.is_reading = True

    def mix(
        self, slot: int, projected: Tensor, weights: DeltaNetWeights, out_proj: Weight
    ) -> Activations:
        """Read T tokens' projections into one Gated DeltaNet layer; see `gated_delta_net`.

        Args:
            slot: number of the layer among the Gated DeltaNet layers.
            projected: [T, q | k | v | z | b | a].
            weights: of the layer.
            out_proj: which `linear` is to multiply the result by.

        Returns:
            [T, value_heads · value_dim].
        """
        past, now = self._layers[slot], self._pass
        if self._drafted is not None:
            out, drafted = verify(
                projected, weights=weights, convolution=past.convolution, recurrent=past.recurrent
            )
            self._drafted.append(drafted)
            return out
        assert now is not None
        for number, end in enumerate(now.kept):
            kept, size = now.convolution[slot, number], len(past.convolution)
            inputs = projected[max(0, end - size) : end, : weights.conv.shape[1]]
            kept[size - len(inputs) :] = inputs
            if len(inputs) < size:  # the past's last ones stand in front of them
                kept[: size - len(inputs)] = past.convolution[len(inputs) :]
        return prefill(
            projected,
            weights=weights,
            convolution=past.convolution,
            recurrent=past.recurrent,
            grid=now.grid,
            checkpoints=now.recurrent[slot],
            out_proj=out_proj,
        )

    def mix_step(self, slot: int, projected: Tensor, weights: DeltaNetWeights) -> Tensor:
        """The same for one token's projection [q | k | v | z | b | a], on the CPU."""
        past = self._layers[slot]
        return step_on_cpu(
            projected, weights=weights, convolution=past.convolution, recurrent=past.recurrent
        )

    def attend(self, slot: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append T tokens to one attention layer's keys and values, and let them attend.

        Args:
            slot: number of the layer among the full-attention layers.
            q: [T, heads, head_dim].
            k, v: [T, kv_heads, head_dim].

        Returns:
            [T, heads, head_dim].
        """
        return self._kv.attend(slot, self.position, q=q, k=k, v=v)

    def attend_step(self, slot: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same for one token: q [heads, head_dim], k and v [kv_heads, head_dim]."""
        return self._kv.attend_step(slot, self.position, q=q, k=k, v=v)
