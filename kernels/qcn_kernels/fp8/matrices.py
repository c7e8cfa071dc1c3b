"""Weights that stay in FP8, with their scales."""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128  # rows and columns of a weight under one scale, columns of an activation


@dataclass(frozen=True, slots=True)
class Fp8Matrices:
    """One matrix, or a stack of them, as a checkpoint stores it."""

    values: Tensor  # [..., rows, columns] float8_e4m3fn
    scale_inv: Tensor  # [..., ceil(rows / 128), ceil(columns / 128)] fp32, multiplied by

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        *stack, rows, columns = self.values.shape
        blocks = (*stack, -(-rows // BLOCK), -(-columns // BLOCK))
        fits = self.values.dtype == torch.float8_e4m3fn and self.scale_inv.dtype == torch.float32
        if not fits or self.scale_inv.shape != blocks:
            raise ValueError(
                f"{self.values.dtype} values {list(self.values.shape)} with {self.scale_inv.dtype}"
                f" scales {list(self.scale_inv.shape)}; expected float8_e4m3fn values with float32"
                f" scales {list(blocks)}"
            )

    @property
    def shape(self) -> torch.Size:
        """Of the values."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + self.scale_inv.nbytes

    def __len__(self) -> int:
        return self.values.shape[0]
