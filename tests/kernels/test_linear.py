"""Products of a block of tokens on the CPU, beside exact ones."""

import pytest
import torch
from qcn_kernels.linear import linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_every_number_of_rows_gives_its_own_products(dtype: torch.dtype, with_bias: bool) -> None:
    weight = torch.randn(48, 96).to(dtype)
    bias = torch.randn(48).to(dtype) if with_bias else None
    for tokens in (1, 15, 16, 17, 100):
        x = torch.randn(tokens, 96).to(dtype)
        exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        out = linear(x, weight, bias)
        assert out.shape == (tokens, 48)
        assert out.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2  # two roundings to bf16
        torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=10 * tolerance)
