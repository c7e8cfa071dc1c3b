"""Experts of weights in groups, dequantised in the kernel, against the mixture in fp64."""

from collections.abc import Callable

import pytest
import torch
from groupwise_stacks import eight_bit, four_bit, mxfp4
from interpreted import Caller
from kernel_tolerances import assert_agrees
from qcn_kernels.groupwise import GroupwiseMatrices
from qcn_kernels.moe import route
from qcn_kernels.moe.reference import mixture
from qcn_kernels.moe.triton import experts
from qcn_kernels.moe.triton_step import experts_step
from torch import Tensor

EXPERTS, TOP_K = 5, 2


class Layer:
    """Random experts and tokens; what comes out in fp64."""

    def __init__(
        self,
        up: Callable[..., GroupwiseMatrices],
        down: Callable[..., GroupwiseMatrices],
        tokens: int,
        hidden: int,
        size: int,
    ) -> None:
        self.gate_up = up(EXPERTS, 2 * size, hidden)
        self.down = down(EXPERTS, hidden, size)
        self.x = torch.randn(tokens, hidden)
        self.logits = torch.randn(tokens, EXPERTS)
        self.logits[:, 3] = -torch.inf  # nobody's choice
        self.weights, self.chosen = route(self.logits, top_k=TOP_K, normalise=True)

    def expected(self) -> Tensor:
        return mixture(
            self.x.double(),
            logits=self.logits.double(),
            gate_up=self.gate_up.dequantised().double(),
            down=self.down.dequantised().double(),
            top_k=TOP_K,
            normalise=True,
        )

    def run(self, call: Caller, launcher: Callable[..., Tensor], tokens: slice) -> Tensor:
        out: Tensor = call(
            launcher,
            x=self.x[tokens],
            weights=self.weights[tokens],
            chosen=self.chosen[tokens],
            gate_up=self.gate_up,
            down=self.down,
        )
        return out


SHAPES = pytest.mark.parametrize(
    ("up", "down", "tokens", "hidden", "size"),
    [
        (four_bit, four_bit, 7, 192, 64),
        (four_bit, eight_bit, 33, 128, 192),  # as Q4_K_M mixes them
        (mxfp4, mxfp4, 9, 96, 160),  # no multiple of what is read at once
        (eight_bit, four_bit, 3, 64, 64),
    ],
)


@SHAPES
def test_prefill(
    call: Caller,
    up: Callable[..., GroupwiseMatrices],
    down: Callable[..., GroupwiseMatrices],
    tokens: int,
    hidden: int,
    size: int,
) -> None:
    layer = Layer(up, down, tokens, hidden, size)
    got = layer.run(call, experts, slice(None))
    assert_agrees("moe_groupwise", got, layer.expected(), hardware=call.hardware)


@SHAPES
def test_decode_and_verification(
    call: Caller,
    up: Callable[..., GroupwiseMatrices],
    down: Callable[..., GroupwiseMatrices],
    tokens: int,
    hidden: int,
    size: int,
) -> None:
    layer = Layer(up, down, min(tokens, 4), hidden, size)
    want = layer.expected()
    together = layer.run(call, experts_step, slice(None))
    assert_agrees("moe_step", together, want, hardware=call.hardware)
    alone = layer.run(call, experts_step, slice(1, 2))
    assert torch.equal(alone, together[1:2])


@pytest.mark.parametrize("group", [16, 32, 64, 128])
def test_groups_of_every_size(call: Caller, group: int) -> None:
    """GPTQ's and AWQ's: a float for each group, and groups longer than what is read at once."""

    def stack(count: int, rows: int, columns: int) -> GroupwiseMatrices:
        groups = columns // group
        units = torch.rand(count, rows, groups).half() / 50
        ones = torch.ones(count, rows, groups, dtype=torch.uint8)
        zeros = torch.randint(6, 10, ones.shape, dtype=torch.uint8)
        codes = torch.randint(0, 256, (count, rows, columns // 2), dtype=torch.uint8)
        return GroupwiseMatrices(codes, ones, zeros, units, units, torch.float32)

    layer = Layer(stack, stack, 5, 256, 128)
    want = layer.expected()
    got = layer.run(call, experts, slice(None))
    assert_agrees("moe_groupwise", got, want, hardware=call.hardware)
    got = layer.run(call, experts_step, slice(2))
    assert_agrees("moe_step", got, want[:2], hardware=call.hardware)


def test_a_token_does_not_depend_on_what_shares_its_launch(call: Caller) -> None:
    layer = Layer(four_bit, four_bit, 40, 64, 64)
    together = layer.run(call, experts, slice(None))
    assert torch.equal(layer.run(call, experts, slice(33, 40)), together[33:])


@pytest.mark.gpu
@pytest.mark.parametrize("stack", [four_bit, eight_bit, mxfp4])
def test_the_real_shape(on_gpu: Caller, stack: Callable[..., GroupwiseMatrices]) -> None:
    """Experts of 2048 × 512: 300 tokens at once, the last by themselves, and one decoded."""
    layer = Layer(stack, stack, 300, 2048, 512)
    want = layer.expected()
    got = layer.run(on_gpu, experts, slice(None))
    assert_agrees("moe_groupwise", got, want, hardware=True)
    assert torch.equal(layer.run(on_gpu, experts, slice(290, 300)), got[290:])
    step = layer.run(on_gpu, experts_step, slice(1))
    assert_agrees("moe_step", step, want[:1], hardware=True)
