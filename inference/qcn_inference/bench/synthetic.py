"""A model of random weights in the shape of a published one, made on its device: no download."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from qcn_kernels.fp8 import Fp8Matrices
from qcn_kernels.groupwise import GroupwiseMatrices
from qcn_kernels.moe import Matrices
from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.loading import Loader
from qcn_inference.model import Model
from qcn_inference.tensors import StoredTensor
from qcn_inference.weights import build_model

SPREAD = 0.02
"""Standard deviation of the weights, as models are initialised; speed does not depend on it."""
GROUP, BLOCK = 32, 256
"""Columns under a scale, and under a scale of scales, of 4-bit experts, as converted ones have."""
_PACKED = (".experts.gate_up_proj", ".experts.down_proj")
_PLAIN = ("gate.weight", "in_proj_ba.weight", "in_proj_b.weight", "in_proj_a.weight")


class RandomTensors(Loader):
    """What a checkpoint would give, drawn at random; the head is its own."""

    def __init__(self, device: str, dtype: torch.dtype, stored: str) -> None:
        self.dtype = dtype
        self._device = device
        self._in_host_memory = False
        self._fp8, self._int4 = stored == "fp8", stored == "int4"

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

    def experts(self, name: str, count: int, rows: int, columns: int) -> Matrices:
        """Draw a layer's experts: bf16, or codes of 4 bits, all scales alike."""
        if not self._int4:
            return super().experts(name, count, rows, columns)

        def every(part: int, value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((count, rows, columns // part), value, dtype=dtype, device=device)

        device, block = self._device, math.gcd(columns, BLOCK)
        step = SPREAD / math.sqrt((16**2 - 1) / 12)  # codes are uniform from 0 to 15
        codes = torch.empty(count, rows, columns // 2, dtype=torch.uint8, device=device)
        return GroupwiseMatrices(
            codes=codes.random_(0, 256),
            scales=every(GROUP, 128, torch.uint8),
            mins=every(GROUP, 240, torch.uint8),  # of 32 to a step: 7.5, their mean
            block_scales=every(block, step / 128, self.dtype),
            block_mins=every(block, step / 32, self.dtype),
            dtype=self.dtype,
        )

    def take(self, name: str, *shape: int) -> Tensor:
        """Draw a small tensor, fp32."""
        return torch.randn(shape, device=self._device) * SPREAD

    def ignore(self, name: str) -> None:
        """Nothing is stored."""

    def refuse_unused(self) -> None:
        """Nothing is stored."""

    def load(self) -> None:
        """All was filled as it was placed."""


def synthetic_model(config: ModelConfig, device: str, stored: str) -> Model:
    """Return a model with random weights in one of `footprint.FORMATS`, by name."""
    tensors = RandomTensors(device, torch.bfloat16, stored)
    return build_model(config, tensors, "synthetic", mtp=False)


def random_ids(config: ModelConfig, count: int) -> Sequence[int]:
    """Return so many tokens, always the same; none is a control token, which come last."""
    generator = torch.Generator().manual_seed(count)
    last = config.vocab_size * 9 // 10
    ids: list[int] = torch.randint(last, (count,), generator=generator).tolist()
    return ids
