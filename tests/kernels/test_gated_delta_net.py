"""A Gated DeltaNet layer between its projections, on the CPU, against its reference in fp64."""

import dataclasses

import torch
from qcn_kernels.fp8 import plain
from qcn_kernels.gated_delta_net import (
    DeltaNetWeights,
    prefill,
    reference,
    ring_from_state,
    state_from_ring,
    step,
)
from qcn_kernels.gated_delta_rule import chunk_grid
from torch import Tensor

KERNEL, KEY_HEADS, HEADS, KEY_DIM, VALUE_DIM = 4, 2, 6, 20, 12
CHANNELS = 2 * KEY_HEADS * KEY_DIM + HEADS * VALUE_DIM


def weights() -> DeltaNetWeights:
    return DeltaNetWeights(
        conv=torch.randn(KERNEL, CHANNELS),
        neg_a=-torch.empty(HEADS).uniform_(1, 16),
        dt_bias=torch.empty(HEADS).uniform_(-7, 1),
        norm=torch.randn(VALUE_DIM),
        eps=1e-6,
        key_heads=KEY_HEADS,
        key_dim=KEY_DIM,
    )


def exact(of: DeltaNetWeights) -> DeltaNetWeights:
    tensors = {name: getattr(of, name).double() for name in ("conv", "neg_a", "dt_bias", "norm")}
    return dataclasses.replace(of, **tensors)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want.float(), atol=1e-4, rtol=1e-4)


def test_prefill_keeps_the_states_it_is_told_to_and_steps_go_on_from_them() -> None:
    layer = weights()
    projected = torch.randn(150, CHANNELS + HEADS * VALUE_DIM + 2 * HEADS)
    recurrent = torch.randn(HEADS, KEY_DIM, VALUE_DIM)
    convolution = torch.randn(KERNEL - 1, CHANNELS)
    exact_layer, exact_recurrent = exact(layer), recurrent.double()
    exact_convolution = convolution.double()
    checkpoints = torch.full((2, HEADS, KEY_DIM, VALUE_DIM), torch.nan)
    read = prefill(
        projected[:145],
        weights=layer,
        convolution=convolution,
        recurrent=recurrent,
        grid=chunk_grid([130, 15], checkpoints=[64, 130]),
        checkpoints=checkpoints,
    )
    got = plain(read)
    kept = iter(checkpoints)
    for start, end in ((0, 64), (64, 130), (130, 145)):
        want = reference.prefill(
            projected[start:end].double(),
            weights=exact_layer,
            convolution=exact_convolution,
            recurrent=exact_recurrent,
        )
        close(got[start:end], want)
        close(next(kept, recurrent), exact_recurrent)
    close(convolution, exact_convolution)

    ring = ring_from_state(convolution, 145)
    for number in range(145, 150):
        position = torch.tensor([number])
        out = step(
            projected[number], weights=layer, ring=ring, position=position, recurrent=recurrent
        )
        want = reference.prefill(
            projected[number : number + 1].double(),
            weights=exact_layer,
            convolution=exact_convolution,
            recurrent=exact_recurrent,
        )
        close(out, want[0])
    close(recurrent, exact_recurrent)
    close(state_from_ring(ring, 150), exact_convolution)


def test_a_ring_and_back() -> None:
    state = torch.randn(3, 5)
    for position in range(9):
        assert torch.equal(state_from_ring(ring_from_state(state, position), position), state)
