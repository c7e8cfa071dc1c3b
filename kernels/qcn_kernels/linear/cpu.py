"""torch's product on the CPU, spared a kernel for every number of rows."""

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 16
"""Rows of bf16 are padded to a multiple of this. torch compiles a kernel for each number of rows it
meets and keeps it: of qcn-nano's products that is 5 ms and 3 MB for each length of a block."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x · weightᵀ + bias` for T tokens; shapes as in `__init__.py`."""
    spare = 0 if x.dtype == torch.float32 else -len(x) % ROWS
    if not spare:
        return functional.linear(x, weight, bias)
    return functional.linear(functional.pad(x, (0, 0, 0, spare)), weight, bias)[: len(x)]
