"""A model of random weights in the shape of a published one: no download.

All is drawn on the model's device, by which 80 GB are there in seconds. Experts that are to lie in
the host's memory go there from it, a layer's matrices at a time.
"""

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
from qcn_inference.offload.layers import Offload
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

    def __contains__(self, name: object) -> bool:
        name = str(name)
        return name == "lm_head.weight" or (not self._fp8 and name.endswith(_PACKED))

    def find(self, name: str, *shape: int) -> StoredTensor:
        """Every tensor is there."""
        return StoredTensor(name, Path(), "BF16", shape, 0, 0)

    def place(self, tensor: StoredTensor, *parts: Tensor) -> None:
        """Fill the parts at once."""
        for part in parts:
            drawn = torch.empty(part.shape, dtype=part.dtype, device=self._device)
            self._put(part, drawn.normal_(std=SPREAD))

    def keeps_fp8(self, tensor: StoredTensor) -> bool:
        """Whether publishers store this matrix in FP8."""
        return self._fp8 and not tensor.name.endswith(_PLAIN)

    def place_fp8(self, tensor: StoredTensor, *parts: Fp8Matrices) -> None:
        """Fill values and scales at once."""
        for part in parts:
            self._put(part.values, torch.randn(part.shape, device=self._device))
            part.scale_inv.fill_(SPREAD)

    def experts(self, name: str, count: int, rows: int, columns: int) -> Matrices:
        """Draw a layer's experts: bf16, or codes of 4 bits, all scales alike."""
        if not self._int4:
            return super().experts(name, count, rows, columns)

        def every(part: int, value: float, dtype: torch.dtype) -> Tensor:
            return self.empty_experts(count, rows, columns // part, dtype=dtype).fill_(value)

        block = math.gcd(columns, BLOCK)
        step = SPREAD / math.sqrt((16**2 - 1) / 12)  # codes are uniform from 0 to 15
        codes = self.empty_experts(count, rows, columns // 2, dtype=torch.uint8)
        drawn = torch.empty(codes.shape, dtype=torch.uint8, device=self._device)
        self._put(codes, drawn.random_(0, 256))
        return GroupwiseMatrices(
            codes=codes,
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

    def _put(self, part: Tensor, drawn: Tensor) -> None:
        part.copy_(drawn.to(part.dtype))  # on the device, wherever the part lies


def synthetic_model(
    config: ModelConfig, device: str, stored: str, offload: Offload | None = None
) -> Model:
    """Return a model with random weights in one of `footprint.FORMATS`, by name.

    Raises:
        DeviceMemoryError, torch.OutOfMemoryError: there is no room for it.
    """
    tensors = RandomTensors(device, torch.bfloat16, stored)
    return build_model(config, tensors, "synthetic", mtp=False, offload=offload)


def random_ids(vocab_size: int, count: int) -> Sequence[int]:
    """Return so many tokens, always the same; none is a control token, which come last."""
    generator = torch.Generator().manual_seed(count)
    ids: list[int] = torch.randint(vocab_size * 9 // 10, (count,), generator=generator).tolist()
    return ids
