"""Activations that are quantised where they arise, for the products that read them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Quantised:
    """Activations of T tokens, and the same as FP8 products read them. On a GPU only."""

    plain: Tensor  # [T, columns] bf16 or fp32, for parts of a weight that are no FP8
    values: Tensor  # [T, columns] float8_e4m3fn
    scales: Tensor  # [T, ceil(columns / 128)] fp32


Activations = Tensor | Quantised
"""[T, columns]."""


def plain(x: Activations) -> Tensor:
    """Return activations as they were before they were quantised."""
    return x.plain if isinstance(x, Quantised) else x


def empty_quantised(plain: Tensor, block: int) -> Quantised:
    """Return room for the quantised form of a tensor [T, columns], `block` columns to a scale."""
    tokens, columns = plain.shape
    values = torch.empty(plain.shape, dtype=torch.float8_e4m3fn, device=plain.device)
    scales = plain.new_empty(tokens, -(-columns // block), dtype=torch.float32)
    return Quantised(plain, values, scales)
