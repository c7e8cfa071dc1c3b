"""The small weights of a Gated DeltaNet layer, and how its projection is laid out."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DeltaNetWeights:
    """What a layer needs between its two projections. All fp32 but in tests."""

    conv: Tensor  # [kernel, conv_dim], conv_dim = q | k | v
    neg_a: Tensor  # [value_heads], -exp(A_log)
    dt_bias: Tensor  # [value_heads]
    norm: Tensor  # [value_dim]
    eps: float
    key_heads: int
    key_dim: int

    @property
    def value_heads(self) -> int:
        """Number of heads of the recurrence."""
        return self.neg_a.shape[0]

    @property
    def value_dim(self) -> int:
        """Dimensions of a value head."""
        return self.norm.shape[0]

    def split(self, projected: Tensor) -> tuple[Tensor, ...]:
        """Cut [..., q | k | v | z | b | a] into the convolution's input, z, b and a."""
        heads = self.value_heads
        sizes = (self.conv.shape[1], heads * self.value_dim, heads, heads)
        return torch.split_with_sizes(projected, sizes, dim=-1)

    def split_heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut [T, q | k | v] into heads: q, k [T, key_heads, key_dim], v [T, value_heads, …]."""
        keys = self.key_heads * self.key_dim
        values = self.value_heads * self.value_dim
        q, k, v = mixed.split_with_sizes((keys, keys, values), dim=-1)
        key_shape = (-1, self.key_heads, self.key_dim)
        return (
            q.view(key_shape),
            k.view(key_shape),
            v.view(-1, self.value_heads, self.value_dim),
        )
