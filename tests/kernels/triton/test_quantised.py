"""Activations that are quantised where they arise: to the bit what `quantise` makes of them.

What they are before may differ by rounding from what is not quantised: another program sums it up.
"""

from collections.abc import Callable

import pytest
import torch
from fp8_support import random_fp8
from interpreted import Caller, require_e4m3
from kernel_tolerances import assert_agrees
from qcn_kernels.fp8.quantised import Quantised
from qcn_kernels.fp8.triton import quantise
from qcn_kernels.gating.triton import gated, gated_quantised
from qcn_kernels.linear import Stacked, gated_for, linear, norm_for
from qcn_kernels.rms_norm.triton import (
    add_rms_norm,
    gated_rms_norm,
    gated_rms_norm_quantised,
    rms_norm,
    rms_norm_quantised,
)
from torch import Tensor

EPS = 1e-6


@pytest.fixture(autouse=True)
def where_fp8_is_multiplied(call: Caller) -> None:
    """Elsewhere nothing is quantised: see `reads_e4m3`."""
    require_e4m3(call)


COLUMNS = pytest.mark.parametrize("columns", [128, 160, 640, 2048])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def assert_is_of(got: Quantised, plain: Tensor, call: Caller) -> None:
    assert got.plain.dtype == plain.dtype
    assert_agrees("rms_norm", got.plain, plain.double(), hardware=call.hardware)
    values, scales = call(quantise, x=got.plain)
    assert torch.equal(got.values.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(got.scales, scales)


@COLUMNS
@DTYPES
def test_a_norm(call: Caller, columns: int, dtype: torch.dtype) -> None:
    x, scale = 9 * torch.randn(7, columns), torch.randn(columns)
    how = {"scale": scale, "eps": EPS, "dtype": dtype}
    plain = call(rms_norm, x=x, **how)
    assert_is_of(call(rms_norm_quantised, x=x, **how), plain, call)


@DTYPES
def test_a_norm_of_a_sum(call: Caller, dtype: torch.dtype) -> None:
    """The stream takes what is added as it does without."""
    x, added, scale = torch.randn(5, 300), torch.randn(5, 300).to(dtype), torch.randn(300)
    other = x.clone()
    how = {"added": added, "scale": scale, "eps": EPS, "dtype": dtype}
    plain = call(add_rms_norm, x=x, **how)
    assert_is_of(call(rms_norm_quantised, x=other, **how), plain, call)
    assert torch.equal(x, other)


@DTYPES
@pytest.mark.parametrize(("heads", "dim"), [(1, 128), (3, 128), (2, 384)])
def test_a_gated_norm_of_heads(call: Caller, dtype: torch.dtype, heads: int, dim: int) -> None:
    """The gate is a part of a wider projection."""
    x, scale = 3 * torch.randn(35, heads, dim).to(dtype), torch.randn(dim)
    gate = torch.randn(35, heads * dim + 16).to(dtype)[:, 16:].view(x.shape)
    how = {"gate": gate, "scale": scale, "eps": EPS, "dtype": dtype}
    plain = call(gated_rms_norm, x=x, **how).flatten(1)
    assert_is_of(call(gated_rms_norm_quantised, x=x, **how), plain, call)


@COLUMNS
@DTYPES
@pytest.mark.parametrize("gating", ["silu", "sigmoid"])
def test_what_is_behind_a_gate(call: Caller, columns: int, dtype: torch.dtype, gating: str) -> None:
    """Halves of one projection; more columns than a program takes among them."""
    both = 5 * torch.randn(3, 2 * columns + 3).to(dtype)
    x, gate = both[:, :columns], both[:, columns : 2 * columns]
    plain = call(gated, x=x, gate=gate, gating=gating)
    assert_is_of(call(gated_quantised, x=x, gate=gate, gating=gating), plain, call)


@pytest.mark.parametrize("make", [norm_for, gated_for])
@pytest.mark.parametrize("columns", [100, 384])
def test_a_product_does_not_tell_where_it_was_quantised(
    call: Caller, make: Callable[..., object], columns: int
) -> None:
    """Of a weight in two formats; what has fewer columns than a scale comes as it is."""
    parts = random_fp8(256, columns), torch.randn(7, columns)
    weight = Stacked(parts, torch.float32)
    x, other = torch.randn(9, columns), torch.randn(9, columns)
    if make is norm_for:
        given = {"scale": other[0].contiguous(), "eps": EPS}
        plain = call(rms_norm, x=x, **given, dtype=torch.float32)
    else:
        given = {"gate": other, "gating": "silu"}
        plain = call(gated, x=x, **given)
    made = call(make, weight=weight, x=x, **given)
    assert isinstance(made, Quantised) is (columns >= 128)
    as_it_is = made.plain if isinstance(made, Quantised) else made
    assert_agrees("rms_norm", as_it_is, plain.double(), hardware=call.hardware)
    got = call(linear, x=made, weight=weight)
    assert torch.equal(got, call(linear, x=as_it_is, weight=weight))
