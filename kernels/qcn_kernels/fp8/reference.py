"""FP8 (e4m3, arXiv 2209.05433) with one scale per block, as in arXiv 2412.19437 §3.3."""

import torch
from torch import Tensor
from torch.nn import functional

from qcn_kernels.fp8.matrices import BLOCK

LARGEST = 448.0  # of e4m3
SMALLEST = 1e-10  # largest value of a block that is taken for nothing but zeros


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


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return activations as e4m3 with one scale for 128 of a token's columns.

    Args:
        x: [T, columns].

    Returns:
        Values [T, columns] float8_e4m3fn and scales [T, ceil(columns / 128)] fp32, of which the
        product is x, rounded: the largest of 128 columns becomes 448, the largest of e4m3.
    """
    columns = x.shape[1]
    padded = functional.pad(x.to(torch.float32), (0, -columns % BLOCK))
    padded = torch.unflatten(padded, 1, (-1, BLOCK))
    peaks = padded.abs().amax(dim=2).clamp(min=SMALLEST)
    factors = torch.full_like(peaks, LARGEST) / peaks  # a number over a tensor is rounded twice
    values = (padded * factors.unsqueeze(2)).to(torch.float8_e4m3fn)
    return values.flatten(1)[:, :columns].contiguous(), peaks / LARGEST
