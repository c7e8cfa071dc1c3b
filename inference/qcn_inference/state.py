"""What a sequence leaves behind: recurrent and convolution state, KV cache, position. One value.

Ownership. A `State` belongs to whoever made or forked it; `Model` mutates it in place while it
reads tokens. Forks never see each other's tokens.

A fork copies the recurrent and convolution parts (their size does not depend on the length) and
shares the KV cache, which is append-only: a state reads only the entries below its own length. It
may therefore write behind its length in the shared buffers as long as no other living state reads
there; otherwise it takes a copy first. So a request forked from a kept prefix, run and dropped,
copies nothing, request after request, and two living branches cost one copy.

On disk a state is a safetensors file, written beside its place and renamed into it, with the
model's fingerprint and a digest of its contents: one that is cut short, altered or of another model
is refused, never read.
"""

import hashlib
import os
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.errors import CheckpointError

if TYPE_CHECKING:
    from qcn_inference.model import Model

FORMAT = "qcn-state-1"
MIN_CAPACITY = 256  # tokens the KV cache starts with; it doubles when full


@dataclass(slots=True)
class DeltaNetState:
    """One Gated DeltaNet layer's past; both parts fp32."""

    convolution: Tensor  # [kernel - 1, channels], oldest input first
    recurrent: Tensor  # [value_heads, key_dim, value_dim]


@dataclass(frozen=True, slots=True)
class KvBlock:
    """Keys and values of some tokens that follow each other, cut out of a state; never changed."""

    keys: tuple[Tensor, ...]  # per full-attention layer [kv_heads, T, head_dim]
    values: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(x.nbytes for x in self.keys + self.values)


@dataclass(slots=True)
class _KvBuffers:
    """Keys and values of all full-attention layers, shared by a state and its forks."""

    keys: list[Tensor]  # per layer [kv_heads, capacity, head_dim]
    values: list[Tensor]
    capacity: int  # tokens
    readers: "weakref.WeakSet[State]"  # the living states that share these buffers


class State:
    """One sequence's past, for one model. `Model.new_state` and `fork` make it."""

    position: int  # tokens read so far

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, fingerprint: str) -> None:
        """Make the state of an empty sequence, its keys and values in `dtype`."""
        self.position = 0
        self._config = config
        self._dtype = dtype
        self._fingerprint = fingerprint
        self._reading = False
        self.deltanet = [
            DeltaNetState(
                convolution=torch.zeros(config.linear_conv_kernel_dim - 1, config.linear_conv_dim),
                recurrent=torch.zeros(
                    config.linear_num_value_heads,
                    config.linear_key_head_dim,
                    config.linear_value_head_dim,
                ),
            )
            for layer_type in config.layer_types
            if layer_type == "linear_attention"
        ]
        self._kv = self._new_buffers(0)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors; shared KV buffers count in full in every state that shares them."""
        recurrent = sum(part.convolution.nbytes + part.recurrent.nbytes for part in self.deltanet)
        return recurrent + sum(x.nbytes for x in self._kv.keys + self._kv.values)

    @torch.inference_mode()
    def fork(self) -> "State":
        """Return an independent state of the same sequence; copies no keys and values."""
        self.require_usable()
        fork = object.__new__(State)
        fork.position = self.position
        fork._config, fork._dtype = self._config, self._dtype
        fork._fingerprint = self._fingerprint
        fork._reading = False
        fork.deltanet = [
            DeltaNetState(part.convolution.clone(), part.recurrent.clone())
            for part in self.deltanet
        ]
        fork._kv = self._kv
        fork._kv.readers.add(fork)
        return fork

    # Its parts, for a cache that keeps them apart.

    @torch.inference_mode()
    def kv_of(self, start: int, stop: int) -> KvBlock:
        """Return a copy of the keys and values of the tokens from `start` to `stop`."""
        self.require_usable()
        return KvBlock(
            tuple(keys[:, start:stop].clone() for keys in self._kv.keys),
            tuple(values[:, start:stop].clone() for values in self._kv.values),
        )

    @torch.inference_mode()
    def recurrent_part(self) -> tuple[DeltaNetState, ...]:
        """Return a copy of what does not grow with the text: recurrent and convolution state."""
        self.require_usable()
        return tuple(
            DeltaNetState(part.convolution.clone(), part.recurrent.clone())
            for part in self.deltanet
        )

    @torch.inference_mode()
    def put_together(
        self, blocks: Sequence[KvBlock], recurrent: Sequence[DeltaNetState], position: int
    ) -> None:
        """Become the state behind `position` tokens, whose parts are given; they are copied."""
        self._kv = self._new_buffers(position)
        self.position = position
        for part, kept in zip(self.deltanet, recurrent, strict=True):
            part.convolution.copy_(kept.convolution)
            part.recurrent.copy_(kept.recurrent)
        at = 0
        for block in blocks:
            for slot, (keys, values) in enumerate(zip(block.keys, block.values, strict=True)):
                stop = at + keys.shape[1]
                self._kv.keys[slot][:, at:stop] = keys
                self._kv.values[slot][:, at:stop] = values
            at += block.keys[0].shape[1] if block.keys else 0

    # What `Model` calls while it reads tokens.

    def require_usable(self) -> None:
        """Raise RuntimeError if a read of tokens into this state was begun and never finished."""
        if self._reading:
            raise RuntimeError("this state was left in the middle of a prefill; start from a fork")

    def begin_reading(self, tokens: int) -> None:
        """Make room for `tokens` more; the state is unusable by others until `end_reading`."""
        self.require_usable()
        self._reading = True
        needed = self.position + tokens
        shared = len(self._kv.readers) > 1 and any(
            other.position > self.position or other._reading
            for other in self._kv.readers
            if other is not self
        )
        if needed > self._kv.capacity or shared:
            self._move_to(self._new_buffers(needed))

    def end_reading(self) -> None:
        """Declare the tokens read: position stands behind them, every layer has taken them in."""
        self._reading = False

    def extend_kv(self, slot: int, *, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values of the tokens behind `position` in one attention layer.

        Args:
            slot: number of the layer among the full-attention layers.
            k, v: [kv_heads, T, head_dim].

        Returns:
            Views of all keys and values, [kv_heads, position + T, head_dim].
        """
        keys, values = self._kv.keys[slot], self._kv.values[slot]
        start, stop = self.position, self.position + k.shape[1]
        keys[:, start:stop] = k
        values[:, start:stop] = v
        return keys[:, :stop], values[:, :stop]

    def _new_buffers(self, tokens: int) -> _KvBuffers:
        config = self._config
        capacity = 0
        if tokens:
            capacity = max(MIN_CAPACITY, 1 << (tokens - 1).bit_length())
        layers = config.layer_types.count("full_attention")
        shape = (config.num_key_value_heads, capacity, config.head_dim)
        return _KvBuffers(
            keys=[torch.empty(shape, dtype=self._dtype) for _ in range(layers)],
            values=[torch.empty(shape, dtype=self._dtype) for _ in range(layers)],
            capacity=capacity,
            readers=weakref.WeakSet([self]),
        )

    def _move_to(self, buffers: _KvBuffers) -> None:
        """Copy this state's own entries into fresh buffers and leave the shared ones."""
        length = self.position
        pairs = zip(buffers.keys + buffers.values, self._kv.keys + self._kv.values, strict=True)
        for new, old in pairs:
            new[:, :length] = old[:, :length]
        self._kv.readers.discard(self)
        self._kv = buffers

    # On disk.

    def save(self, path: Path) -> None:
        """Write the state to `path` as safetensors, readable by its owner alone.

        The file appears whole or not at all. Raises OSError when it cannot be written.
        """
        self.require_usable()
        tensors = self._tensors()
        metadata = {
            "format": FORMAT,
            "fingerprint": self._fingerprint,
            "position": str(self.position),
            "sha256": _digest(tensors, str(self.position)),
        }
        # mkstemp makes the file 0600; a second process saving the same state has its own.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            save_file(tensors, temporary, metadata=metadata)
            temporary.chmod(0o600)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, model: "Model") -> "State":
        """Read a state that `save` wrote for this very model.

        Raises:
            CheckpointError: no such file; cut short or altered; of another model or version.
        """
        remedy = "Delete the file; the text it stands for is read again"
        state = model.new_state()
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CheckpointError(path, f"not a saved state of format {FORMAT}", remedy)
                if metadata.get("fingerprint") != model.fingerprint:
                    raise CheckpointError(path, "saved by another model or precision", remedy)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                path, f"cannot be read as a saved state ({error})", remedy
            ) from error
        if metadata.get("sha256") != _digest(tensors, metadata.get("position", "")):
            raise CheckpointError(path, "its contents were altered since it was written", remedy)
        state._restore(tensors, int(metadata["position"]))
        return state

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for i, part in enumerate(self.deltanet):
            tensors[f"deltanet.{i}.convolution"] = part.convolution
            tensors[f"deltanet.{i}.recurrent"] = part.recurrent
        for i, (keys, values) in enumerate(zip(self._kv.keys, self._kv.values, strict=True)):
            tensors[f"attention.{i}.keys"] = keys[:, : self.position].contiguous()
            tensors[f"attention.{i}.values"] = values[:, : self.position].contiguous()
        return tensors

    @torch.inference_mode()
    def _restore(self, tensors: dict[str, Tensor], position: int) -> None:
        """Take over tensors whose digest and fingerprint have been checked."""
        recurrent = [
            DeltaNetState(tensors[f"deltanet.{i}.convolution"], tensors[f"deltanet.{i}.recurrent"])
            for i in range(len(self.deltanet))
        ]
        layers = range(len(self._kv.keys))
        whole = KvBlock(
            tuple(tensors[f"attention.{i}.keys"] for i in layers),
            tuple(tensors[f"attention.{i}.values"] for i in layers),
        )
        self.put_together([whole], recurrent, position)


def _digest(tensors: dict[str, Tensor], position: str) -> str:
    """SHA-256 of everything that is restored."""
    digest = hashlib.sha256(position.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()
