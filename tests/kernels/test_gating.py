"""Gates on the CPU."""

import torch
from qcn_kernels.gating import gated
from torch.nn import functional


def test_a_gate_multiplies_by_its_sigmoid_or_by_its_silu() -> None:
    x, gate = torch.randn(5, 7), torch.randn(5, 7)
    torch.testing.assert_close(gated(x, gate=gate, gating="sigmoid"), x * gate.sigmoid())
    torch.testing.assert_close(gated(x, gate=gate, gating="silu"), x * functional.silu(gate))
