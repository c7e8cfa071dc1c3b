"""One token's products in Triton, with what stands before and behind them, against fp64."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from fp8_support import random_fp8
from interpreted import Caller, as_on
from kernel_tolerances import assert_agrees
from linear_weights import fp8, fp8_over_plain, in_fp64, plain, plain_bf16, three_parts
from qcn_kernels.linear import Stacked, Weight
from qcn_kernels.linear.triton_step import add_linear_step, linear_step
from qcn_kernels.rms_norm import Normed
from qcn_kernels.rms_norm.reference import rms_norm

EPS = 1e-3
CHIPS = pytest.mark.parametrize("chip", [90, 80])  # with e4m3 and without


WEIGHTS = pytest.mark.parametrize("weight", [plain, plain_bf16, fp8, fp8_over_plain, three_parts])


@CHIPS
@WEIGHTS
@pytest.mark.parametrize("shape", [(75,), (3, 1100)])
def test_a_product_has_its_bias(
    call: Caller, chip: int, weight: Callable[[int], Weight], shape: tuple[int, ...]
) -> None:
    x, drawn = torch.randn(shape), weight(shape[-1])
    want = in_fp64(drawn)
    bias = torch.randn(len(want))
    got = call(partial(as_on, chip, linear_step), x=x, weight=drawn, bias=bias)
    assert got.dtype == drawn.dtype
    assert_agrees("linear_step", got, x.double() @ want.T + bias, hardware=call.hardware)


@CHIPS
@WEIGHTS
@pytest.mark.parametrize("shape", [(75,), (3, 1100)])
def test_a_norm_is_taken_on_the_way(
    call: Caller, chip: int, weight: Callable[[int], Weight], shape: tuple[int, ...]
) -> None:
    x, scale, drawn = 5 * torch.randn(shape), torch.randn(shape[-1]), weight(shape[-1])
    normed = rms_norm(x.double(), scale=scale.double(), eps=EPS)
    got = call(partial(as_on, chip, linear_step), x=Normed(x, scale, EPS), weight=drawn, bias=None)
    want = normed @ in_fp64(drawn).T
    assert_agrees("linear_step", got, want, hardware=call.hardware)


@WEIGHTS
@pytest.mark.parametrize("gating", ["sigmoid", "silu"])
@pytest.mark.parametrize("shape", [(75,), (3, 1100)])
def test_what_is_behind_a_gate_is_added_to_the_stream(
    call: Caller, weight: Callable[[int], Weight], gating: str, shape: tuple[int, ...]
) -> None:
    """x and gate are parts of one wider tensor, as of one projection."""
    both, drawn = torch.randn(*shape[:-1], 2 * shape[-1] + 3), weight(shape[-1])
    gate, x = both[..., : shape[-1]], both[..., shape[-1] : 2 * shape[-1]]
    factor = torch.sigmoid if gating == "sigmoid" else torch.nn.functional.silu
    matrix = in_fp64(drawn)
    to = torch.randn(*shape[:-1], len(matrix))
    want = to.double() + (x.double() * factor(gate.double())) @ matrix.T
    call(add_linear_step, to=to, x=x, weight=drawn, bias=None, gate=gate, gating=gating)
    assert_agrees("linear_step", to, want, hardware=call.hardware)


@pytest.mark.gpu
def test_the_real_shapes_agree(on_gpu: Caller) -> None:
    x, weight = torch.randn(16, 2048), random_fp8(12_288, 2048)
    stacked = Stacked((weight, torch.randn(64, 2048).bfloat16()), torch.bfloat16)
    normed = Normed(x, torch.randn(2048), EPS)
    want = rms_norm(x.double(), scale=normed.scale.double(), eps=EPS) @ in_fp64(stacked).T
    got = on_gpu(linear_step, x=normed, weight=stacked, bias=None)
    assert_agrees("linear_step", got, want, hardware=True)
    one = on_gpu(linear_step, x=replace(normed, x=x[3]), weight=stacked, bias=None)
    assert torch.equal(one, got[3])
