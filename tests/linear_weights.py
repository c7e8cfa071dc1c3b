"""Weights of linear layers in each way they are stored, drawn at random."""

import torch
from fp8_support import exact, random_fp8
from qcn_kernels.fp8 import Fp8Matrices
from qcn_kernels.linear import Stacked, Weight
from torch import Tensor


def plain(columns: int) -> Weight:
    return torch.randn(37, columns)


def plain_bf16(columns: int) -> Weight:
    return torch.randn(37, columns).bfloat16()


def fp8(columns: int) -> Weight:
    return Stacked((random_fp8(133, columns),), torch.float32)


def fp8_over_plain(columns: int) -> Weight:
    return Stacked((random_fp8(256, columns), torch.randn(7, columns)), torch.float32)


def three_parts(columns: int) -> Weight:
    parts = torch.randn(9, columns), random_fp8(128, columns), torch.randn(200, columns)
    return Stacked(parts, torch.float32)


def in_fp64(weight: Weight) -> Tensor:
    parts = weight.parts if isinstance(weight, Stacked) else (weight,)
    return torch.cat(
        [exact(part) if isinstance(part, Fp8Matrices) else part.double() for part in parts]
    )
