"""The formulas, and what runs on the CPU."""

from typing import Literal

from torch import Tensor
from torch.nn import functional

Gating = Literal["sigmoid", "silu"]


def gated(x: Tensor, *, gate: Tensor, gating: Gating) -> Tensor:
    """Return `x · gating(gate)`, any shape."""
    return (gate.sigmoid() if gating == "sigmoid" else functional.silu(gate)).mul_(x)
