"""How fast the CPU runs a token's experts that lie in host memory, in any of their formats.

Measured as they run: to make numbers of codes takes the CPU many times what reading them does.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from qcn_kernels.fp8 import BLOCK, Fp8Matrices
from qcn_kernels.groupwise import GroupwiseMatrices
from qcn_kernels.moe import Matrices, experts_step
from torch import Tensor

from qcn_inference.offload.matrices import on_cpu
from qcn_inference.planning.footprint import FP8_BITS

EXPERTS = 4
HIDDEN, INTERMEDIATE = 2048, 512  # Qwen3-Coder-Next's


@dataclass(frozen=True, slots=True)
class ExpertRates:
    """Weights per second."""

    plain: float
    fp8: float
    groups: float  # of codes in groups, of 4 bits and others

    def of(self, bits: float) -> float:
        """Return the rate of experts of so many bits a weight, scales included."""
        if bits == FP8_BITS:
            return self.fp8
        return self.plain if bits in (16, 32) else self.groups


def measured(least_seconds: Callable[[Callable[[], object]], float]) -> ExpertRates:
    """Measure all of them, by what tells the least time that a call takes."""

    def rate(stack: Callable[[int, int], Matrices]) -> float:
        gate_up, down = stack(2 * INTERMEDIATE, HIDDEN), stack(HIDDEN, INTERMEDIATE)
        numbers = torch.arange(EXPERTS)
        x, weights = torch.ones(HIDDEN, dtype=torch.bfloat16), torch.ones(EXPERTS)

        def step() -> None:
            experts_step(
                x,
                weights=weights,
                chosen=numbers,
                gate_up=on_cpu(gate_up, numbers, x.dtype),
                down=on_cpu(down, numbers, x.dtype),
            )

        return EXPERTS * 3 * HIDDEN * INTERMEDIATE / least_seconds(step)

    return ExpertRates(plain=rate(_plain), fp8=rate(_fp8), groups=rate(_groups))


def _plain(rows: int, columns: int) -> Matrices:
    return torch.zeros(EXPERTS, rows, columns, dtype=torch.bfloat16)


def _fp8(rows: int, columns: int) -> Matrices:
    values = torch.zeros(EXPERTS, rows, columns, dtype=torch.float8_e4m3fn)
    return Fp8Matrices(values, torch.ones(EXPERTS, rows // BLOCK, columns // BLOCK))


def _groups(rows: int, columns: int) -> Matrices:
    def of(each: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(EXPERTS, rows, columns // each, dtype=dtype)

    return GroupwiseMatrices(
        codes=of(2, torch.uint8),
        scales=of(32, torch.uint8),
        mins=of(32, torch.uint8),
        block_scales=of(256, torch.bfloat16),
        block_mins=of(256, torch.bfloat16),
        dtype=torch.bfloat16,
    )
