"""A Gated DeltaNet layer between its projections, in Triton, against its reference in fp64."""

import pytest
import torch
from deltanet_layers import SHAPES, draw
from interpreted import Caller
from kernel_tolerances import assert_agrees
from qcn_kernels.gated_delta_net import reference
from qcn_kernels.gated_delta_net.reference import ring_from_state
from qcn_kernels.gated_delta_net.triton import prefill, step
from qcn_kernels.gated_delta_rule.grid import chunk_grid


@pytest.mark.parametrize(("key_heads", "shared", "key_dim", "value_dim", "kernel", "dtype"), SHAPES)
def test_prefill_equals_the_reference(
    call: Caller,
    key_heads: int,
    shared: int,
    key_dim: int,
    value_dim: int,
    kernel: int,
    dtype: torch.dtype,
) -> None:
    layer = draw(key_heads, shared, key_dim, value_dim, kernel)
    exact, projected = layer.exact(), layer.projected(75, dtype)
    want = reference.prefill(
        projected.double(),
        weights=exact.weights,
        convolution=exact.convolution,
        recurrent=exact.recurrent,
    )
    checkpoints = torch.full((1, *layer.recurrent.shape), torch.nan)
    got = call(
        prefill,
        projected=projected,
        weights=layer.weights,
        convolution=layer.convolution,
        recurrent=layer.recurrent,
        grid=chunk_grid([66, 9], checkpoints=[75]),
        checkpoints=checkpoints,
    )
    # In bf16, q, k and v are rounded on their way to the recurrence, and its output to the norm.
    rounding = call.hardware or dtype is torch.bfloat16
    assert_agrees("gated_delta_net", got, want, hardware=rounding)
    assert_agrees("gated_delta_net", layer.recurrent, exact.recurrent, hardware=rounding)
    assert torch.equal(layer.convolution, exact.convolution.float())
    assert torch.equal(checkpoints[0], layer.recurrent)


@pytest.mark.parametrize(("key_heads", "shared", "key_dim", "value_dim", "kernel", "dtype"), SHAPES)
def test_steps_equal_the_reference(
    call: Caller,
    key_heads: int,
    shared: int,
    key_dim: int,
    value_dim: int,
    kernel: int,
    dtype: torch.dtype,
) -> None:
    layer = draw(key_heads, shared, key_dim, value_dim, kernel)
    exact = layer.exact()
    ring = ring_from_state(layer.convolution, 11)
    ring[11 % kernel] = torch.nan  # the row that is due to be overwritten is not read
    exact_ring = ring.double()
    for number, token in enumerate(layer.projected(kernel + 1, dtype), start=11):
        position = torch.tensor([number])
        want = reference.step(
            token.double(),
            weights=exact.weights,
            ring=exact_ring,
            position=position,
            recurrent=exact.recurrent,
        )
        got = call(
            step,
            projected=token,
            weights=layer.weights,
            ring=ring,
            position=position,
            recurrent=layer.recurrent,
        )
        assert_agrees("gated_delta_net", got, want, hardware=False)
    assert_agrees("gated_delta_net", layer.recurrent, exact.recurrent, hardware=False)
    assert torch.equal(ring, exact_ring.float())


@pytest.mark.gpu
def test_steps_agree_with_prefill_and_repeat_to_the_bit(on_gpu: Caller) -> None:
    """The real shape: 8 tokens at once, and one after the other, twice."""
    layer = draw(16, 2, 128, 128)
    projected = layer.projected(8, torch.bfloat16)
    rings = [ring_from_state(layer.convolution, 0) for _ in range(2)]
    states = [layer.recurrent.clone() for _ in rings]
    outputs = []
    for ring, state in zip(rings, states, strict=True):
        for number, token in enumerate(projected):
            out = on_gpu(
                step,
                projected=token,
                weights=layer.weights,
                ring=ring,
                position=torch.tensor([number]),
                recurrent=state,
            )
        outputs.append(out)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(states[0], states[1])
    assert torch.equal(rings[0], rings[1])
    whole = on_gpu(
        prefill,
        projected=projected,
        weights=layer.weights,
        convolution=layer.convolution,
        recurrent=layer.recurrent,
        grid=chunk_grid([8]),
        checkpoints=layer.recurrent.new_empty(0, *layer.recurrent.shape),
    )
    assert_agrees("gated_delta_net", whole[-1], outputs[0].double(), hardware=True)
