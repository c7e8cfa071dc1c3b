"""Block FP8: every weight times its own block's scale, at ragged edges too."""

import pytest
import torch
from qcn_kernels.fp8 import Fp8Matrices, dequantise


@pytest.mark.parametrize("shape", [(128, 128), (130, 260), (1, 1), (75, 300), (3, 130, 63)])
def test_each_weight_takes_its_blocks_scale(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape).to(torch.float8_e4m3fn)
    scale = torch.rand(*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    got = dequantise(weight, scale_inv=scale, block=(128, 128))
    rows, columns = torch.arange(shape[-2]) // 128, torch.arange(shape[-1]) // 128
    want = weight.float() * scale[..., rows[:, None], columns]
    assert torch.equal(got, want)
    assert got.shape == shape


def test_every_e4m3_value_is_exact() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(16, 16)
    got = dequantise(codes, scale_inv=torch.tensor([[2.0]]), block=(128, 128))
    sign = torch.where(torch.arange(256) < 128, 1.0, -1.0)
    exponent, mantissa = torch.arange(256) // 8 % 16, torch.arange(256) % 8
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    want = sign * torch.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    want[[0x7F, 0xFF]] = torch.nan  # e4m3fn has no infinities; these two are no number
    torch.testing.assert_close(got.flatten(), 2 * want, equal_nan=True, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("values", "scales"),
    [
        (torch.zeros(130, 128).to(torch.float8_e4m3fn), torch.ones(1, 1)),
        (torch.zeros(3, 128, 128).to(torch.float8_e4m3fn), torch.ones(1, 1)),
        (torch.zeros(128, 128), torch.ones(1, 1)),
        (torch.zeros(128, 128).to(torch.float8_e4m3fn), torch.ones(1, 1).double()),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    values: torch.Tensor, scales: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match="expected float8_e4m3fn values with float32 scales"):
        Fp8Matrices(values, scales)
