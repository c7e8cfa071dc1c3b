"""What the kernels of the mixture take for granted of their arguments."""

import torch
from torch import Tensor

from qcn_kernels.fp8.matrices import BLOCK, Fp8Matrices
from qcn_kernels.matrices import Matrices


def check_shapes(
    x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Matrices, down: Matrices
) -> None:
    """Assert it. x: [T, hidden]; the others as for `moe.experts`."""
    tokens, hidden = x.shape
    experts, _, intermediate = down.shape
    assert weights.shape == chosen.shape
    assert chosen.shape[0] == tokens
    assert gate_up.shape == (experts, 2 * intermediate, hidden)
    assert down.shape == (experts, hidden, intermediate)
    assert x.stride(1) == 1
    assert weights.is_contiguous()
    assert chosen.is_contiguous()
    assert weights.dtype == torch.float32
    assert chosen.dtype == torch.int64
    if isinstance(gate_up, Fp8Matrices):  # no block of 128 rows holds both gate and up
        assert intermediate % BLOCK == 0
