"""Gated DeltaNet layers between their projections, drawn at random."""

import dataclasses

import torch
from qcn_kernels.gated_delta_net.weights import DeltaNetWeights
from torch import Tensor

# As large as the square of a small output of the recurrence: with less, a token of which nothing
# but rounding is left is normalised to the size of all others.
EPS = 1e-3


@dataclasses.dataclass(frozen=True)
class Layer:
    """Random weights, and what the past left."""

    weights: DeltaNetWeights
    convolution: Tensor
    recurrent: Tensor

    def projected(self, tokens: int, dtype: torch.dtype) -> Tensor:
        heads, value_dim = self.weights.value_heads, self.weights.value_dim
        columns = self.weights.conv.shape[1] + heads * value_dim + 2 * heads
        return torch.randn(tokens, columns).to(dtype)

    def exact(self) -> "Layer":
        """The same in fp64."""
        tensors = {
            name: getattr(self.weights, name).double()
            for name in ("conv", "neg_a", "dt_bias", "norm")
        }
        weights = dataclasses.replace(self.weights, **tensors)
        return Layer(weights, self.convolution.double(), self.recurrent.double())


def draw(key_heads: int, shared: int, key_dim: int, value_dim: int, kernel: int = 4) -> Layer:
    heads = key_heads * shared
    channels = 2 * key_heads * key_dim + heads * value_dim
    weights = DeltaNetWeights(
        conv=torch.randn(kernel, channels),
        neg_a=-torch.empty(heads).uniform_(1, 16),
        dt_bias=torch.empty(heads).uniform_(-7, 1),
        norm=torch.randn(value_dim),
        eps=EPS,
        key_heads=key_heads,
        key_dim=key_dim,
    )
    return Layer(weights, torch.randn(kernel - 1, channels), torch.randn(heads, key_dim, value_dim))


SHAPES = [
    (2, 2, 16, 16, 4, torch.float32),
    (1, 3, 20, 12, 2, torch.float32),
    (1, 2, 128, 128, 4, torch.bfloat16),
]
