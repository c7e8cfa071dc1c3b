"""The parts that a sequence's past is made of, and that a cache keeps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qcn_inference.config import ModelConfig


@dataclass(eq=False, slots=True, weakref_slot=True)
class DeltaNetState:
    """One Gated DeltaNet layer's past; both parts fp32."""

    convolution: Tensor  # [kernel - 1, channels], oldest input first
    recurrent: Tensor  # [value_heads, key_dim, value_dim]


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class KvBlock:
    """Keys and values of some tokens that follow each other, cut out of a state; never changed."""

    keys: tuple[Tensor, ...]  # per full-attention layer [kv_heads, T, a row of the pages]
    values: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(x.nbytes for x in self.keys + self.values)


@dataclass(frozen=True, slots=True)
class RecurrentPart:
    """The past of all Gated DeltaNet layers, in one tensor of each kind; fp32."""

    convolution: Tensor  # [layers, kernel - 1, channels]
    recurrent: Tensor  # [layers, value_heads, key_dim, value_dim]

    @classmethod
    def of_nothing(cls, config: ModelConfig, device: torch.device) -> "RecurrentPart":
        """Return the part of an empty sequence."""
        layers = config.layer_types.count("linear_attention")
        heads, key_dim = config.linear_num_value_heads, config.linear_key_head_dim
        inputs = (layers, config.linear_conv_kernel_dim - 1, config.linear_conv_dim)
        matrices = (layers, heads, key_dim, config.linear_value_head_dim)
        return cls(torch.zeros(inputs, device=device), torch.zeros(matrices, device=device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "RecurrentPart":
        """Return what `change` makes of both tensors."""
        return RecurrentPart(change(self.convolution), change(self.recurrent))

    def layers(self) -> tuple[DeltaNetState, ...]:
        """Return views of each layer's part."""
        pairs = zip(self.convolution.unbind(), self.recurrent.unbind(), strict=True)
        return tuple(DeltaNetState(*pair) for pair in pairs)

    def copy_(self, kept: tuple[DeltaNetState, ...]) -> None:
        """Become a copy of layers that are kept elsewhere."""
        for mine, other in zip(self.layers(), kept, strict=True):
            mine.convolution.copy_(other.convolution, non_blocking=True)
            mine.recurrent.copy_(other.recurrent, non_blocking=True)
