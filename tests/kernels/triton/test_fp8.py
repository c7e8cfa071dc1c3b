"""Block FP8 in Triton: activations as the reference rounds them, products against fp64."""

from functools import partial

import pytest
import torch
from fp8_support import exact, random_fp8, rounded
from interpreted import Caller, as_on, require_e4m3
from kernel_tolerances import assert_agrees
from qcn_kernels.fp8 import reference
from qcn_kernels.fp8.triton import linear, quantise

WITH_E4M3, WITHOUT = 90, 80
CHIPS = pytest.mark.parametrize("chip", [WITH_E4M3, WITHOUT])


@pytest.mark.parametrize(
    ("tokens", "columns", "dtype"), [(1, 128, torch.float32), (35, 300, torch.bfloat16)]
)
def test_activations_are_quantised_as_the_reference_does(
    call: Caller, tokens: int, columns: int, dtype: torch.dtype
) -> None:
    """Values of all sizes, so that many become subnormal; one token is zero."""
    require_e4m3(call)
    sizes = torch.exp(4 * torch.randn(tokens, columns + 3))
    x = (torch.randn(tokens, columns + 3) * sizes).to(dtype)[:, :columns]
    x[-1] = 0
    values, scales = call(quantise, x=x)
    want_values, want_scales = reference.quantise(x)
    assert torch.equal(scales, want_scales)
    assert torch.equal(values.float(), want_values.float())


def test_halves_are_rounded_to_even(call: Caller) -> None:
    """448 makes the scale 1, so that the other values are codes and what lies between two."""
    require_e4m3(call)
    codes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    x = torch.zeros(2, 128)
    x[0, :127] = codes
    x[1, :126] = (codes[1:] + codes[:-1]) / 2
    x[1, 126] = 448
    values, scales = call(quantise, x=x)
    assert scales.tolist() == [[1.0], [1.0]]
    assert torch.equal(values.float(), x.to(torch.float8_e4m3fn).float())


@CHIPS
@pytest.mark.parametrize(
    ("tokens", "rows", "columns", "dtype"),
    [(1, 70, 75, torch.float32), (135, 300, 260, torch.float32), (20, 130, 384, torch.bfloat16)],
)
def test_a_prefill_agrees(
    call: Caller, chip: int, tokens: int, rows: int, columns: int, dtype: torch.dtype
) -> None:
    x = torch.randn(tokens, columns + 5).to(dtype)[:, :columns]
    weight = random_fp8(rows, columns)
    want = (rounded(x) if chip == WITH_E4M3 else x.double()) @ exact(weight).T
    got = call(partial(as_on, chip, linear), x=x, weight=weight)
    assert_agrees("linear_fp8", got, want, hardware=call.hardware)


@CHIPS
def test_a_token_does_not_depend_on_what_shares_its_launch(call: Caller, chip: int) -> None:
    """60 tokens at once, and the last 7 of them by themselves, at another place of their tile."""
    x, weight = torch.randn(60, 260), random_fp8(140, 260)
    together = call(partial(as_on, chip, linear), x=x, weight=weight)
    alone = call(partial(as_on, chip, linear), x=x[53:], weight=weight)
    assert torch.equal(alone, together[53:])


@pytest.mark.gpu
def test_the_real_shape_gives_the_same_whatever_the_block(on_gpu: Caller) -> None:
    x, weight = torch.randn(3000, 2048).bfloat16(), random_fp8(12_288, 2048)
    together = on_gpu(linear, x=x, weight=weight)
    assert torch.equal(on_gpu(linear, x=x[2700:], weight=weight), together[2700:])
