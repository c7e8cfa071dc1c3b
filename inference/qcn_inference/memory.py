"""Where the pasts of sequences lie: what a state asks for, and the CPU's answer.

`device_memory.py` is the GPU's.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.contiguous_kv import ContiguousKv
from qcn_inference.kept import DeltaNetState, KvBlock, RecurrentPart

if TYPE_CHECKING:
    from qcn_inference.state import State


class KeysAndValues(Protocol):
    """The keys and values of one sequence in all full-attention layers."""

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""

    def fork(self, owner: "State") -> "KeysAndValues":
        """Return those of another state that has read the same tokens."""

    def with_room(self, owner: "State", tokens: int) -> "KeysAndValues":
        """Return what `owner` may write `tokens` more to."""

    def cut(self, start: int, stop: int) -> KvBlock:
        """Return a copy of the tokens from `start` to `stop`, to be kept in the host's memory."""

    def attend(self, slot: int, position: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append T tokens behind `position`; let them attend. As `State.attend`."""

    def attend_step(self, slot: int, position: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same for one token. As `State.attend_step`."""


class Memory(Protocol):
    """The memory that the states of one model share."""

    device: torch.device

    def new_kv(self, owner: "State") -> KeysAndValues:
        """Return the keys and values of an empty sequence."""

    def kv_of(self, blocks: Sequence[KvBlock], owner: "State") -> KeysAndValues:
        """Return a copy of blocks that follow each other from a text's beginning."""

    def keep(self, part: RecurrentPart) -> tuple[DeltaNetState, ...]:
        """Return a copy that is kept in the host's memory. `part` is not used afterwards."""

    def restore(self, kept: tuple[DeltaNetState, ...], into: RecurrentPart) -> None:
        """Copy what `keep` returned."""

    def when_copied(self) -> Callable[[], None]:
        """Return what waits until all that was kept so far can be read; on any thread."""


class HostMemory:
    """Memory of the CPU."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self.device = torch.device("cpu")
        self._config = config
        self._dtype = dtype  # of keys and values

    def new_kv(self, owner: "State") -> ContiguousKv:
        """As `Memory.new_kv`."""
        return ContiguousKv(self._config, self._dtype, 0, owner)

    def kv_of(self, blocks: Sequence[KvBlock], owner: "State") -> ContiguousKv:
        """As `Memory.kv_of`."""
        kv = ContiguousKv(self._config, self._dtype, owner.position, owner)
        kv.put(blocks)
        return kv

    def keep(self, part: RecurrentPart) -> tuple[DeltaNetState, ...]:
        """As `Memory.keep`."""
        return part.layers()

    def restore(self, kept: tuple[DeltaNetState, ...], into: RecurrentPart) -> None:
        """As `Memory.restore`."""
        into.copy_(kept)

    def when_copied(self) -> Callable[[], None]:
        """As `Memory.when_copied`: it is."""
        return lambda: None
