"""Random weights as an FP8 checkpoint has them."""

import torch
from qcn_kernels.fp8 import BLOCK, Fp8Matrices, dequantise, reference
from torch import Tensor


def random_fp8(*shape: int, size: float = 0.05) -> Fp8Matrices:
    """Matrices [..., rows, columns] with weights of about `size`, all 254 finite codes possible."""
    codes = torch.randint(0, 256, shape, dtype=torch.uint8)
    codes[(codes & 127) == 127] = 0  # no number
    blocks = (*shape[:-2], -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK))
    scale = torch.empty(blocks).uniform_(0.5, 1.5) * size / 100  # mean size of all codes: 58
    return Fp8Matrices(codes.view(torch.float8_e4m3fn), scale)


def exact(matrices: Fp8Matrices) -> Tensor:
    """What the weights stand for, fp64."""
    block = (BLOCK, BLOCK)
    return dequantise(matrices.values, scale_inv=matrices.scale_inv, block=block).double()


def rounded(x: Tensor) -> Tensor:
    """What is left of activations [T, columns] that were quantised, fp64."""
    values, scales = reference.quantise(x.to(torch.float32))
    return dequantise(values, scale_inv=scales, block=(1, BLOCK)).double()
