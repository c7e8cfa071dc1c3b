"""Rotary embedding is a rotation: complex multiplication says by how much."""

import pytest
import torch
from qcn_kernels.rotary import apply_rotary, rms_norm_rotary, rotary_tables


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(8, 8), (60, 14), (64, 2)])
def test_pairs_turn_by_position_over_wavelength(head_dim: int, rotary_dim: int) -> None:
    theta = 10_000.0
    positions = torch.tensor([0, 1, 17, 4095])
    x = torch.randn(4, 3, head_dim)
    half = rotary_dim // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:rotary_dim].double())
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = pairs * torch.exp(1j * positions[:, None, None] * frequency)
    want = torch.cat((turned.real, turned.imag, x[..., rotary_dim:]), -1).float()
    cos, sin = rotary_tables(positions, rotary_dim=rotary_dim, theta=theta)
    got = apply_rotary(x, cos=cos.unsqueeze(1), sin=sin.unsqueeze(1))
    # Angles are fp32, as in the model: 4,095 turns lose 12 of its 24 bits' worth of position.
    torch.testing.assert_close(got, want, atol=1e-3, rtol=0)
    torch.testing.assert_close(got[:2], want[:2], atol=1e-6, rtol=1e-5)


def test_what_lies_behind_the_rotary_dimensions_is_untouched() -> None:
    x = torch.randn(2, 10)
    before = x.clone()
    cos, sin = rotary_tables(torch.tensor([5]), rotary_dim=4, theta=100.0)
    apply_rotary(x, cos=cos, sin=sin)
    assert torch.equal(x[:, 4:], before[:, 4:])
    assert not torch.equal(x[:, :4], before[:, :4])


def test_heads_are_normalised_before_they_turn() -> None:
    x, scale = 9 * torch.randn(7, 3, 60), torch.randn(3, 60)
    cos, sin = rotary_tables(torch.arange(7), rotary_dim=14, theta=1e4)
    got = rms_norm_rotary(x, scale=scale, eps=1e-6, cos=cos, sin=sin, dtype=torch.float32)
    root = (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    want = apply_rotary((x / root * scale).float(), cos=cos.unsqueeze(1), sin=sin.unsqueeze(1))
    torch.testing.assert_close(got, want)
