"""The projections in Triton against the product in fp64."""

import pytest
import torch
from interpreted import Caller
from kernel_tolerances import assert_agrees
from qcn_kernels.linear.triton import linear


@pytest.mark.parametrize(
    ("tokens", "rows", "columns", "biased", "dtype"),
    [
        (1, 70, 75, True, torch.float32),
        (35, 130, 100, False, torch.float32),
        (130, 200, 75, False, torch.bfloat16),
        (300, 60, 60, True, torch.bfloat16),
    ],
)
def test_any_sizes_agree(
    call: Caller, tokens: int, rows: int, columns: int, biased: bool, dtype: torch.dtype
) -> None:
    """More tokens than a band of tiles holds in one case; x is a part of a wider tensor."""
    x = torch.randn(tokens, columns + 5).to(dtype)[:, :columns]
    weight, bias = torch.randn(rows, columns).to(dtype), torch.randn(rows).to(dtype)
    want = x.double() @ weight.double().T + (bias.double() if biased else 0.0)
    got = call(linear, x=x, weight=weight, bias=bias if biased else None)
    assert_agrees("linear", got, want, hardware=call.hardware)


def test_a_token_does_not_depend_on_what_shares_its_launch(call: Caller) -> None:
    """60 tokens at once, and the last 7 of them by themselves, at another place of their tile."""
    x, weight = torch.randn(60, 90), torch.randn(40, 90)
    together = call(linear, x=x, weight=weight, bias=None)
    assert torch.equal(call(linear, x=x[53:], weight=weight, bias=None), together[53:])


@pytest.mark.gpu
def test_the_real_shape_gives_the_same_whatever_the_block(on_gpu: Caller) -> None:
    x, weight = torch.randn(3000, 2048).bfloat16(), torch.randn(12_352, 2048).bfloat16()
    together = on_gpu(linear, x=x, weight=weight, bias=None)
    assert_agrees("linear", together, x.double() @ weight.double().T, hardware=True)
    alone = on_gpu(linear, x=x[2700:], weight=weight, bias=None)
    assert torch.equal(alone, together[2700:])
