"""Weights in FP8 (e4m3, arXiv 2209.05433) with one scale per block, as in arXiv 2412.19437 §3.3."""

import torch
from torch import Tensor


def dequantise(weight: Tensor, *, scale_inv: Tensor, block: tuple[int, int]) -> Tensor:
    """Return `weight · scale` in fp32, each block with its own scale.

    Args:
        weight: [..., rows, columns] float8_e4m3fn.
        scale_inv: [..., ceil(rows / block rows), ceil(columns / block columns)]. Despite its name,
            what the stored weight is multiplied by; blocks at the edges may be cut short.
        block: rows and columns of a block.
    """
    rows, columns = weight.shape[-2:]
    scale = scale_inv.to(torch.float32)
    scale = scale.repeat_interleave(block[0], dim=-2)[..., :rows, :]
    scale = scale.repeat_interleave(block[1], dim=-1)[..., :columns]
    return weight.to(torch.float32) * scale
