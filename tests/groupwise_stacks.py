"""Random stacks of weights in groups, one of each kind, as large as a model's."""

import torch
from qcn_kernels.groupwise import GroupwiseMatrices
from torch import Tensor


def draw(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    low, high = (0, 256) if dtype == torch.uint8 else (-128, 128)
    return torch.randint(low, high, shape).to(dtype)


def four_bit(count: int, rows: int, columns: int) -> GroupwiseMatrices:
    """As Q4_K and ours: groups of 32, two to a block."""
    units = [torch.rand(count, rows, columns // 64).half() / 1000 for _ in range(2)]
    groups = [draw(count, rows, columns // 32) for _ in range(2)]
    codes = draw(count, rows, columns // 2)
    return GroupwiseMatrices(codes, groups[0], groups[1], units[0], units[1], torch.float32)


def eight_bit(count: int, rows: int, columns: int) -> GroupwiseMatrices:
    """As Q6_K: signed scales of groups of 16, nothing subtracted."""
    codes = draw(count, rows, columns, dtype=torch.int8)
    scales = draw(count, rows, columns // 16, dtype=torch.int8)
    units = torch.rand(count, rows, columns // 64).half() / 10_000
    return GroupwiseMatrices(codes, scales, None, units, None, torch.float32)


def mxfp4(count: int, rows: int, columns: int) -> GroupwiseMatrices:
    exponents = torch.randint(118, 124, (count, rows, columns // 32)).to(torch.uint8)
    codes = draw(count, rows, columns // 2)
    return GroupwiseMatrices(codes, exponents, None, None, None, torch.float32)
