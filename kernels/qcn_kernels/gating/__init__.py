"""Activations behind a gate. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.gating import reference
from qcn_kernels.gating.reference import Gating

__all__ = ["Gating", "gated"]


def gated(x: Tensor, *, gate: Tensor, gating: Gating) -> Tensor:
    """Return `x · gating(gate)` in x's dtype; x and gate [T, columns], columns without gaps."""
    if uses_triton(x):
        from qcn_kernels.gating import triton

        return triton.gated(x, gate=gate, gating=gating)
    return reference.gated(x, gate=gate, gating=gating)
