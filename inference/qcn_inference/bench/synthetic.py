"""A model of random weights in the shape of a published one, made on its device: no download."""

from collections.abc import Sequence
from pathlib import Path

import torch
from qcn_kernels.fp8 import Fp8Matrices
from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.loading import Loader
from qcn_inference.model import Model
from qcn_inference.tensors import StoredTensor
from qcn_inference.weights import build_model

SPREAD = 0.02
"""Standard deviation of the weights, as models are initialised; speed does not depend on it."""
_PACKED = (".experts.gate_up_proj", ".experts.down_proj")
_PLAIN = ("gate.weight", "in_proj_ba.weight", "in_proj_b.weight", "in_proj_a.weight")


class RandomTensors(Loader):
    """What a checkpoint would give, drawn at random; the head is its own."""

    def __init__(self, device: str, dtype: torch.dtype, *, fp8: bool) -> None:
        self.dtype = dtype
        self._device = device
        self._in_host_memory = False
        self._fp8 = fp8

    def __contains__(self, name: str) -> bool:
        return name == "lm_head.weight" or (not self._fp8 and name.endswith(_PACKED))

    def find(self, name: str, *shape: int) -> StoredTensor:
        """Every tensor is there."""
        return StoredTensor(name, Path(), "BF16", shape, 0, 0)

    def place(self, tensor: StoredTensor, *parts: Tensor) -> None:
        """Fill the parts at once."""
        for part in parts:
            part.normal_(std=SPREAD)

    def keeps_fp8(self, tensor: StoredTensor) -> bool:
        """Whether publishers store this matrix in FP8."""
        return self._fp8 and not tensor.name.endswith(_PLAIN)

    def place_fp8(self, tensor: StoredTensor, *parts: Fp8Matrices) -> None:
        """Fill values and scales at once."""
        for part in parts:
            part.values.copy_(torch.randn(part.shape, device=part.values.device))
            part.scale_inv.fill_(SPREAD)

    def take(self, name: str, *shape: int) -> Tensor:
        """Draw a small tensor, fp32."""
        return torch.randn(shape, device=self._device) * SPREAD

    def ignore(self, name: str) -> None:
        """Nothing is stored."""

    def refuse_unused(self) -> None:
        """Nothing is stored."""

    def load(self) -> None:
        """All was filled as it was placed."""


def synthetic_model(config: ModelConfig, device: str, *, fp8: bool) -> Model:
    """Return a model with random weights in bf16, or in FP8 as publishers store it."""
    tensors = RandomTensors(device, torch.bfloat16, fp8=fp8)
    return build_model(config, tensors, "synthetic", mtp=False)


def random_ids(config: ModelConfig, count: int) -> Sequence[int]:
    """Return so many tokens, always the same; none is a control token, which come last."""
    generator = torch.Generator().manual_seed(count)
    last = config.vocab_size * 9 // 10
    ids: list[int] = torch.randint(last, (count,), generator=generator).tolist()
    return ids
