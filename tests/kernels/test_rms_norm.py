"""The norms against their formulas in fp64."""

import pytest
import torch
from qcn_kernels.rms_norm import add_rms_norm, gated_rms_norm, l2_norm, rms_norm


@pytest.mark.parametrize("shape", [(63,), (5, 1), (3, 2, 75)])
@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e4])
def test_norms_follow_their_formulas(shape: tuple[int, ...], magnitude: float) -> None:
    x, gate = magnitude * torch.randn(shape), torch.randn(shape)
    scale, exact = torch.randn(shape[-1]), x.double()
    root = (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    want = exact / root * scale
    torch.testing.assert_close(rms_norm(x, scale=scale, eps=1e-6), want.float())
    gated = want * gate.double() * gate.double().sigmoid()
    torch.testing.assert_close(gated_rms_norm(x, gate=gate, scale=scale, eps=1e-6), gated.float())
    length = (exact.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(l2_norm(x), (exact / length).float())


def test_each_head_may_have_its_own_scale() -> None:
    x, scale = torch.randn(4, 3, 8), torch.randn(3, 8)
    want = torch.stack([rms_norm(x[:, h], scale=scale[h], eps=1e-5) for h in range(3)], dim=1)
    torch.testing.assert_close(rms_norm(x, scale=scale, eps=1e-5), want)


def test_a_vector_of_zeros_stays_zero() -> None:
    zeros = torch.zeros(2, 7)
    assert torch.equal(rms_norm(zeros, scale=torch.ones(7), eps=1e-6), zeros)
    assert torch.equal(l2_norm(zeros), zeros)


def test_what_is_added_stays_in_the_stream() -> None:
    x, added, scale = torch.randn(5, 60), torch.randn(5, 60), torch.randn(60)
    total = x + added
    got = add_rms_norm(x, added=added, scale=scale, eps=1e-6, dtype=torch.bfloat16)
    assert torch.equal(x, total)
    assert torch.equal(got, rms_norm(total, scale=scale, eps=1e-6).bfloat16())
