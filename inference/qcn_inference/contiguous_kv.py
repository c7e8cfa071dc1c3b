"""Keys and values on the CPU: one buffer a layer, which a sequence and its forks share.

The buffers are append-only: a state reads only the entries below its own length. It may therefore
write behind its length in shared buffers as long as no other living state reads there; otherwise it
takes a copy first. So a request forked from a kept prefix, run and dropped, copies nothing, request
after request, and two living branches cost one copy.
"""

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from qcn_kernels.attention import attention, attention_step
from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.kept import KvBlock

if TYPE_CHECKING:
    from qcn_inference.state import State

MIN_CAPACITY = 256  # tokens that buffers have room for at first; it doubles when they are full


class ContiguousKv:
    """The keys and values of all full-attention layers, for the states in `readers`."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, tokens: int, owner: "State"):
        self._config, self._dtype = config, dtype
        self._capacity = max(MIN_CAPACITY, 1 << (tokens - 1).bit_length()) if tokens else 0
        layers = config.layer_types.count("full_attention")
        shape = (config.num_key_value_heads, self._capacity, config.head_dim)
        self._keys = [torch.empty(shape, dtype=dtype) for _ in range(layers)]
        self._values = [torch.empty(shape, dtype=dtype) for _ in range(layers)]
        self._readers: weakref.WeakSet[State] = weakref.WeakSet([owner])

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, shared or not."""
        return sum(x.nbytes for x in self._keys + self._values)

    def fork(self, owner: "State") -> "ContiguousKv":
        """Share these with a state that has read the same tokens."""
        self._readers.add(owner)
        return self

    def with_room(self, owner: "State", tokens: int) -> "ContiguousKv":
        """Return what `owner` may write `tokens` more to: these, or a copy of its own."""
        needed = owner.position + tokens
        shared = len(self._readers) > 1 and any(
            other.position > owner.position or other.is_reading
            for other in self._readers
            if other is not owner
        )
        if needed <= self._capacity and not shared:
            return self
        fresh = ContiguousKv(self._config, self._dtype, needed, owner)
        length = owner.position
        pairs = zip(fresh._keys + fresh._values, self._keys + self._values, strict=True)
        for new, old in pairs:
            new[:, :length] = old[:, :length]
        self._readers.discard(owner)
        return fresh

    def cut(self, start: int, stop: int) -> KvBlock:
        """Return a copy of the tokens from `start` to `stop`."""
        return KvBlock(
            tuple(keys[:, start:stop].clone() for keys in self._keys),
            tuple(values[:, start:stop].clone() for values in self._values),
        )

    def put(self, blocks: Sequence[KvBlock]) -> None:
        """Fill the front with copies of blocks that follow each other."""
        at = 0
        for block in blocks:
            for slot, (keys, values) in enumerate(zip(block.keys, block.values, strict=True)):
                stop = at + keys.shape[1]
                self._keys[slot][:, at:stop] = keys
                self._values[slot][:, at:stop] = values
            at += block.keys[0].shape[1] if block.keys else 0

    def attend(self, slot: int, position: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append T tokens behind `position`; let them attend. As `State.attend`."""
        keys, values = self._extend(slot, position, k.transpose(0, 1), v.transpose(0, 1))
        return attention(q=q.transpose(0, 1).contiguous(), k=keys, v=values).transpose(0, 1)

    def attend_step(self, slot: int, position: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same for one token. As `State.attend_step`."""
        keys, values = self._extend(slot, position, k.unsqueeze(1), v.unsqueeze(1))
        return attention_step(q=q, k=keys, v=values)

    def _extend(self, slot: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v [kv_heads, T, head_dim]; return views of all there is."""
        keys, values = self._keys[slot], self._values[slot]
        stop = start + k.shape[1]
        keys[:, start:stop] = k
        values[:, start:stop] = v
        return keys[:, :stop], values[:, :stop]
