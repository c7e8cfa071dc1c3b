"""The norms in Triton against their references in fp64."""

import pytest
import torch
from interpreted import Caller
from kernel_tolerances import assert_agrees
from qcn_kernels.rms_norm import reference
from qcn_kernels.rms_norm.triton import add_rms_norm, gated_rms_norm, rms_norm

EPS = 1e-6
SHAPES = [(5, 75), (2, 2048), (3, 5, 63)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(call: Caller, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, scale = 100 * torch.randn(shape).to(dtype), torch.randn(shape[-1])
    want = reference.rms_norm(x.double(), scale=scale.double(), eps=EPS)
    got = call(rms_norm, x=x, scale=scale, eps=EPS, dtype=dtype)
    assert_agrees("rms_norm", got, want, hardware=call.hardware)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_added_stays_in_the_stream(call: Caller, shape: tuple[int, ...]) -> None:
    x, added, scale = torch.randn(shape), torch.randn(shape).bfloat16(), torch.randn(shape[-1])
    total = x + added
    want = reference.rms_norm(total.double(), scale=scale.double(), eps=EPS)
    got = call(add_rms_norm, x=x, added=added, scale=scale, eps=EPS, dtype=torch.bfloat16)
    assert_agrees("rms_norm", got, want, hardware=call.hardware)
    assert torch.equal(x, total)


def test_each_head_may_have_its_own_scale_and_gate(call: Caller) -> None:
    """x and gate are columns of wider tensors."""
    x, gate = torch.randn(7, 4, 60)[:, 1:], torch.randn(7, 3, 90)[:, :, :60]
    scale = torch.randn(3, 60)
    want = reference.gated_rms_norm(x.double(), gate=gate.double(), scale=scale.double(), eps=EPS)
    got = call(gated_rms_norm, x=x, gate=gate, scale=scale, eps=EPS, dtype=torch.float32)
    assert_agrees("rms_norm", got, want, hardware=call.hardware)


def test_a_row_does_not_depend_on_the_others(call: Caller) -> None:
    x, scale = torch.randn(37, 130), torch.randn(130)
    whole = call(rms_norm, x=x, scale=scale, eps=EPS, dtype=torch.float32)
    alone = call(rms_norm, x=x[20:21], scale=scale, eps=EPS, dtype=torch.float32)
    assert torch.equal(alone, whole[20:21])
