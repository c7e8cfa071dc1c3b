"""Matrix products of a block of tokens, or of one, with a weight. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from qcn_kernels import fp8
from qcn_kernels.choice import uses_triton
from qcn_kernels.fp8 import Fp8Matrices
from qcn_kernels.linear import cpu
from qcn_kernels.linear.stacked import Stacked, Weight
from qcn_kernels.rms_norm import Normed

__all__ = ["Gating", "Stacked", "Weight", "add_linear_step", "linear", "linear_step"]

Gating = Literal["sigmoid", "silu"]


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


def linear_step(x: Tensor | Normed, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """The same for one token [columns]; agrees with `linear` within tolerance.

    On a GPU it is one launch, and x may be the norm of a residual stream.
    """
    if isinstance(x, Normed) or uses_triton(x):
        from qcn_kernels.linear import triton_step

        return triton_step.linear_step(x, weight, bias)
    assert isinstance(weight, Tensor)
    return functional.linear(x, weight, bias)


def add_linear_step(
    to: Tensor,
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    gating: Gating = "sigmoid",
) -> None:
    """Add `(x · gating(gate)) · weightᵀ + bias` to a token's residual stream, in place.

    Args:
        to: [rows] fp32.
        x: [columns] in the weight's dtype.
        weight: [rows, columns].
        bias: [rows].
        gate: [columns] as x; none is no factor.
        gating: what makes a factor of it.
    """
    if uses_triton(x):
        from qcn_kernels.linear import triton_step

        triton_step.add_linear_step(to, x, weight, bias, gate=gate, gating=gating)
        return
    if gate is not None:
        x = gate.sigmoid().mul_(x) if gating == "sigmoid" else functional.silu(gate).mul_(x)
    to += linear_step(x, weight, bias)


def _product(x: Tensor, part: Tensor | Fp8Matrices) -> Tensor:
    return fp8.linear(x, part) if isinstance(part, Fp8Matrices) else linear(x, part)


def _biased(products: list[Tensor], bias: Tensor | None) -> Tensor:
    out = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
    return out if bias is None else out.add_(bias)
