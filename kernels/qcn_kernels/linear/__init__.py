"""Matrix products of a block of tokens, or of one, with a weight. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

from torch import Tensor
from torch.nn import functional

from qcn_kernels import fp8
from qcn_kernels.choice import uses_triton
from qcn_kernels.fp8 import BLOCK, Activations, Fp8Matrices, plain
from qcn_kernels.gating import Gating, gated
from qcn_kernels.linear import cpu
from qcn_kernels.linear.stacked import Stacked, Weight
from qcn_kernels.rms_norm import Normed, add_rms_norm, rms_norm

__all__ = [
    "Stacked",
    "Weight",
    "add_linear_few",
    "add_linear_step",
    "gated_for",
    "linear",
    "linear_few",
    "linear_step",
    "norm_for",
    "reads_e4m3",
]


def linear(x: Activations, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Return `x · weightᵀ + bias` for the tokens of a prefill.

    Args:
        x: [T, columns] in the weight's dtype, bf16 or fp32; or as `norm_for` and `gated_for`
            return it.
        weight: [rows, columns].
        bias: [rows].

    Returns:
        [T, rows] in x's dtype.
    """
    if isinstance(weight, Stacked):
        return _stacked(x, weight, bias)
    x = plain(x)
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
        x = gated(x, gate=gate, gating=gating)
    to += linear_step(x, weight, bias)


def linear_few(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """The same for a few tokens [T, columns] that are verified together; on a GPU only.

    It reads the weight once, and agrees with `linear_step` within tolerance.
    """
    from qcn_kernels.linear import triton_verify

    return triton_verify.linear_few(x, weight, bias)


def add_linear_few(to: Tensor, x: Tensor, weight: Weight, bias: Tensor | None = None) -> None:
    """Add `linear_few` to the tokens' residual stream `to` [T, rows] fp32; on a GPU only."""
    from qcn_kernels.linear import triton_verify

    triton_verify.add_linear_few(to, x, weight, bias)


def norm_for(
    weight: Weight, x: Tensor, *, scale: Tensor, eps: float, added: Tensor | None = None
) -> Activations:
    """Return the norm of a residual stream x [T, dim] fp32, for `linear` with a weight.

    It comes in the weight's dtype, and where FP8 products read it, quantised beside that, which
    spares them a launch. `added` is added to x in place first, if it is given.
    """
    if reads_e4m3(weight):
        from qcn_kernels.rms_norm import triton

        return triton.rms_norm_quantised(x, scale=scale, eps=eps, dtype=weight.dtype, added=added)
    if added is None:
        return rms_norm(x, scale=scale, eps=eps, dtype=weight.dtype)
    return add_rms_norm(x, added=added, scale=scale, eps=eps, dtype=weight.dtype)


def gated_for(weight: Weight, x: Tensor, *, gate: Tensor, gating: Gating) -> Activations:
    """Return `x · gating(gate)` [T, columns], for `linear` with a weight; as `norm_for`."""
    if reads_e4m3(weight):
        from qcn_kernels.gating import triton

        return triton.gated_quantised(x, gate=gate, gating=gating)
    return gated(x, gate=gate, gating=gating)


def reads_e4m3(weight: Weight) -> bool:
    """Tell whether `linear` with a weight multiplies, in part, FP8 by FP8."""
    if not isinstance(weight, Stacked) or weight.parts[0].shape[1] < BLOCK:
        return False
    from qcn_kernels.matrices.triton import stored

    parts = (part for part in weight.parts if isinstance(part, Fp8Matrices))
    return any(stored(part)[1] == "e4m3" for part in parts)


def _stacked(x: Activations, weight: Stacked, bias: Tensor | None) -> Tensor:
    """A product for each part, each where it belongs."""
    from qcn_kernels.chip import empty_rows, some_columns
    from qcn_kernels.linear import triton

    rows = weight.shape[0]
    whole, at = empty_rows(plain(x), rows), 0
    for part in weight.parts:
        end = at + part.shape[0]
        product = some_columns(whole, at, (end if end < rows else whole.shape[1]) - at)
        if isinstance(part, Fp8Matrices):
            fp8.linear(x, part, product)
        else:
            triton.linear(plain(x), part, None, product)
        at = end
    out = some_columns(whole, 0, rows)
    return out if bias is None else out.add_(bias)
