"""Where a sequence is decoded on a GPU: what a step reads and writes, at addresses that stay.

`decoder.py` says who sits there, and makes graphs of the steps.
"""

from typing import Protocol

import torch
from qcn_kernels.gated_delta_net import DeltaNetWeights, Drafts, commit, step, verify_step
from qcn_kernels.paged_attention import PagedKv, append, paged_attention_decode
from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.device_memory import DeviceMemory

MOST_ROWS = 16
"""Drafted tokens that are verified at once: what the kernels for a few tokens take."""


class Layers(Protocol):
    """A model's layers, for a seat."""

    def decode_in(self, seat: "Seat", token: Tensor, position: Tensor) -> Tensor:
        """For a token [1] at a position [1]: fp32 logits [vocab]."""

    def verify_in(self, seat: "Seat", tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """For tokens [T] at positions [T]: fp32 hidden states [T, hidden], logits [T, vocab]."""


class Seat:
    """What a step reads and writes, beside the pages."""

    def __init__(self, config: ModelConfig, memory: DeviceMemory) -> None:
        layers = config.layer_types.count("linear_attention")
        device, pool = memory.device, memory.pool
        heads, key_dim = config.linear_num_value_heads, config.linear_key_head_dim
        value_dim, key_heads = config.linear_value_head_dim, config.linear_num_key_heads
        kernel, channels = config.linear_conv_kernel_dim, config.linear_conv_dim
        self.tokens = torch.zeros(MOST_ROWS, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.length = torch.zeros(1, dtype=torch.int32, device=device)
        self.table = torch.zeros(pool.size, dtype=torch.int32, device=device)
        self.rings = torch.zeros(layers, kernel, channels, device=device)
        self.recurrent = torch.zeros(layers, heads, key_dim, value_dim, device=device)
        self.drafts = Drafts(
            inputs=torch.zeros(layers, MOST_ROWS, channels, device=device),
            keys=torch.zeros(layers, MOST_ROWS, key_heads, key_dim, device=device),
            errors=torch.zeros(layers, MOST_ROWS, heads, value_dim, device=device),
            total=torch.zeros(layers, MOST_ROWS, heads, device=device),
        )
        self._count = torch.zeros(1, dtype=torch.int32, device=device)  # of drafts to take in
        self._numbers = torch.arange(MOST_ROWS, device=device)
        self._pool = pool
        self._end = self.length  # of the tokens that attention is given
        self._bound = 0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a step over a token changes."""
        return self.position, self.length, self.rings, self.recurrent

    def run(self, layers: Layers, rows: int, bound: int) -> tuple[Tensor, ...]:
        """Read the first token, or with `rows` that many as drafts.

        The sequence has at most `bound` tokens then.

        Returns:
            The logits [vocab]; of drafts the hidden states [rows, hidden] and the logits.
        """
        self._bound = bound
        if not rows:
            self.length += 1
            self._end = self.length
            logits = layers.decode_in(self, self.tokens[:1], self.position)
            self.position += 1
            return (logits,)
        self._end = self.length + rows
        positions = self.position + self._numbers[:rows]
        return layers.verify_in(self, self.tokens[:rows], positions)

    def commit(self, tokens: int) -> None:
        """Take the first of the drafts in; nothing waits for the device."""
        self._count.fill_(tokens)
        commit(
            self.drafts,
            self._count,
            rings=self.rings,
            position=self.position,
            recurrent=self.recurrent,
        )
        self.position += tokens
        self.length += tokens

    def mix_step(self, slot: int, projected: Tensor, weights: DeltaNetWeights) -> Tensor:
        """As `State.mix_step`."""
        return step(
            projected,
            weights=weights,
            ring=self.rings[slot],
            position=self.position,
            recurrent=self.recurrent[slot],
        )

    def mix_drafts(self, slot: int, projected: Tensor, weights: DeltaNetWeights) -> Tensor:
        """As `State.mix`; the tokens wait in `drafts`."""
        return verify_step(
            projected,
            weights=weights,
            ring=self.rings[slot],
            position=self.position,
            recurrent=self.recurrent[slot],
            drafts=self.drafts.layer(slot),
        )

    def attend_step(self, slot: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `State.attend_step`."""
        kv = self._kv(slot)
        append(kv, k=k[None], v=v[None])
        return paged_attention_decode(q[None], kv)[0]

    def attend_drafts(self, slot: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `State.attend`; the tokens' keys and values stand behind the sequence's own."""
        kv = self._kv(slot)
        append(kv, k=k, v=v)
        return paged_attention_decode(q, kv)

    def _kv(self, slot: int) -> PagedKv:
        keys, values = self._pool.keys[slot], self._pool.values[slot]
        return PagedKv(keys, values, self.table, self._end, max_length=self._bound)
