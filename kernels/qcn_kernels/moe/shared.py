"""The shared expert of a token, half of which is computed with the router."""

from dataclasses import dataclass

from torch import Tensor

from qcn_kernels.fp8 import Fp8Matrices
from qcn_kernels.linear import Stacked, Weight


@dataclass(frozen=True, slots=True)
class SharedExpert:
    """`sigmoid(gate) · down (silu(G x) ∘ U x)`, of which the products with x are there."""

    gate: Tensor  # [1], or [T, 1] of a few tokens
    gate_up: Tensor  # [..., 2 · intermediate], G x | U x
    down: Weight  # [hidden, intermediate]

    @property
    def matrix(self) -> Tensor | Fp8Matrices:
        """`down`, which is of one part: it is stored as one matrix."""
        if isinstance(self.down, Stacked):
            (part,) = self.down.parts
            return part
        return self.down

    def of_few(self) -> "SharedExpert":
        """Return the same of one token as of a few."""
        return SharedExpert(self.gate.unsqueeze(0), self.gate_up.unsqueeze(0), self.down)
