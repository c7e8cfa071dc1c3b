"""Matrix products of a block of tokens, or of one, with a weight. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

import torch
from torch import Tensor
from torch.nn import functional

from qcn_kernels import fp8
from qcn_kernels.choice import uses_triton
from qcn_kernels.fp8 import Fp8Matrices
from qcn_kernels.linear import cpu
from qcn_kernels.linear.stacked import Stacked, Weight

__all__ = ["Stacked", "Weight", "linear", "linear_step"]


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Return `x · weightᵀ + bias` for the tokens of a prefill.

    Args:
        x: [T, columns] in the weight's dtype, bf16 or fp32.
        weight: [rows, columns].
        bias: [rows].

    Returns:
        [T, rows] in x's dtype.
    """
    if isinstance(weight, Stacked):
        return _biased([_product(x, part) for part in weight.parts], bias)
    if uses_triton(x):
        from qcn_kernels.linear import triton

        return triton.linear(x, weight, bias)
    return cpu.linear(x, weight, bias)


def linear_step(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """The same for one token [columns]; agrees with `linear` within tolerance."""
    if isinstance(weight, Stacked):
        return _biased([_product_step(x, part) for part in weight.parts], bias)
    return functional.linear(x, weight, bias)


def _product(x: Tensor, part: Tensor | Fp8Matrices) -> Tensor:
    return fp8.linear(x, part) if isinstance(part, Fp8Matrices) else linear(x, part)


def _product_step(x: Tensor, part: Tensor | Fp8Matrices) -> Tensor:
    return fp8.linear_step(x, part) if isinstance(part, Fp8Matrices) else linear_step(x, part)


def _biased(products: list[Tensor], bias: Tensor | None) -> Tensor:
    out = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
    return out if bias is None else out.add_(bias)
