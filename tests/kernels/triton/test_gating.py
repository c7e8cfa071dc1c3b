"""Gates in Triton against fp64."""

import pytest
import torch
from interpreted import Caller
from kernel_tolerances import assert_agrees
from qcn_kernels.gating.reference import Gating
from qcn_kernels.gating.reference import gated as reference
from qcn_kernels.gating.triton import gated


@pytest.mark.parametrize("gating", ["sigmoid", "silu"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 75), (130, 100), (2, 5000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_one_projection_agree(
    call: Caller, gating: Gating, rows: int, columns: int, dtype: torch.dtype
) -> None:
    both = torch.randn(rows, 2 * columns + 3).to(dtype)
    gate, x = both[:, :columns], both[:, columns : 2 * columns]
    want = reference(x.double(), gate=gate.double(), gating=gating)
    got = call(gated, x=x, gate=gate, gating=gating)
    assert got.dtype == dtype
    assert_agrees("gating", got, want, hardware=call.hardware)
