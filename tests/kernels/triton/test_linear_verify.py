"""Products of a few tokens in Triton, against fp64."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from fp8_support import random_fp8
from interpreted import Caller, as_on
from kernel_tolerances import assert_agrees
from linear_weights import fp8, fp8_over_plain, in_fp64, plain, plain_bf16, three_parts
from qcn_kernels.linear import Stacked, Weight
from qcn_kernels.linear.triton_verify import MANY, add_linear_few, linear_few

CHIPS = pytest.mark.parametrize("chip", [90, 80])  # with e4m3 and without
TOKENS = pytest.mark.parametrize("tokens", [2, 16])


def large_fp8(columns: int) -> Weight:
    """Of so many rows that a program takes more of them."""
    return Stacked((random_fp8(MANY, columns), torch.randn(3, columns)), torch.float32)


@CHIPS
@TOKENS
@pytest.mark.parametrize(
    ("weight", "columns"),
    [
        (plain, 75),
        (plain_bf16, 512),
        (fp8, 1100),
        (fp8_over_plain, 1024),
        (three_parts, 300),
        (large_fp8, 512),
    ],
)
def test_a_product_has_its_bias(
    call: Caller, chip: int, weight: Callable[[int], Weight], columns: int, tokens: int
) -> None:
    """What is behind the last token or column is not read: rows of x may lie apart."""
    drawn = weight(columns)
    x = torch.randn(tokens, columns + 5).to(drawn.dtype)[:, :columns]
    want = in_fp64(drawn)
    bias = torch.randn(len(want))
    got = call(partial(as_on, chip, linear_few), x=x, weight=drawn, bias=bias)
    assert got.dtype == drawn.dtype
    assert_agrees("linear_few", got, x.double() @ want.T + bias, hardware=call.hardware)


@TOKENS
@pytest.mark.parametrize("weight", [plain, fp8_over_plain])
def test_it_is_added_to_the_stream(
    call: Caller, weight: Callable[[int], Weight], tokens: int
) -> None:
    x, drawn = torch.randn(tokens, 200), weight(200)
    matrix = in_fp64(drawn)
    to = torch.randn(tokens, len(matrix))
    want = to.double() + x.double() @ matrix.T
    call(add_linear_few, to=to, x=x, weight=drawn, bias=None)
    assert_agrees("linear_few", to, want, hardware=call.hardware)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [2, 16])
def test_the_real_shapes_agree(on_gpu: Caller, tokens: int) -> None:
    x = torch.randn(tokens, 2048).bfloat16()
    parts = random_fp8(12_288, 2048), torch.randn(64, 2048).bfloat16()
    stacked = Stacked(parts, torch.bfloat16)
    got = on_gpu(linear_few, x=x, weight=stacked, bias=None)
    assert_agrees("linear_few", got, x.double() @ in_fp64(stacked).T, hardware=True)
    to, mixed, out = torch.randn(tokens, 2048), torch.randn(tokens, 4096), random_fp8(2048, 4096)
    mixed = mixed.bfloat16()
    want = to.double() + mixed.double() @ in_fp64(Stacked((out,), torch.bfloat16)).T
    on_gpu(add_linear_few, to=to, x=mixed, weight=Stacked((out,), torch.bfloat16), bias=None)
    assert_agrees("linear_few", to, want, hardware=True)
