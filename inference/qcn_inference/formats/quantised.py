"""Experts stored as floats, quantised to our own 4 bits."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from qcn_kernels.groupwise import GroupwiseMatrices, concatenate, quantise
from torch import Tensor


def quantise_experts(matrices: Sequence[Tensor] | Tensor, threads: int) -> GroupwiseMatrices:
    """Quantise matrices [rows, columns] of any float dtype, some at a time; they become a stack.

    The operations are too small for torch to share them out among threads; whole matrices are.
    """
    with ThreadPoolExecutor(threads) as pool:
        return concatenate(list(pool.map(_quantised, matrices)), dim=0)


def _quantised(matrix: Tensor) -> GroupwiseMatrices:
    return quantise(matrix, torch.bfloat16)
