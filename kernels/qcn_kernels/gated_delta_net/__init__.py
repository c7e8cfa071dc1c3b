"""A Gated DeltaNet layer between its two projections. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.fp8 import Activations
from qcn_kernels.gated_delta_net import cpu, reference
from qcn_kernels.gated_delta_net.cpu import step as step_on_cpu
from qcn_kernels.gated_delta_net.drafts import (
    DraftedDeltaNet,
    Drafts,
    commit,
    verify,
    verify_step,
)
from qcn_kernels.gated_delta_net.reference import ring_from_state, state_from_ring
from qcn_kernels.gated_delta_net.weights import DeltaNetWeights
from qcn_kernels.gated_delta_rule import ChunkGrid
from qcn_kernels.linear import Weight

__all__ = [
    "DeltaNetWeights",
    "DraftedDeltaNet",
    "Drafts",
    "commit",
    "prefill",
    "ring_from_state",
    "state_from_ring",
    "step",
    "step_on_cpu",
    "verify",
    "verify_step",
]


def prefill(
    projected: Tensor,
    *,
    weights: DeltaNetWeights,
    convolution: Tensor,
    recurrent: Tensor,
    grid: ChunkGrid,
    checkpoints: Tensor,
    out_proj: Weight | None = None,
) -> Activations:
    """Read T tokens chunk by chunk.

    Args:
        projected: [T, q | k | v | z | b | a], bf16 or fp32.
        weights: of the layer, fp32.
        convolution: [kernel - 1, conv_dim] fp32, updated in place.
        recurrent: [value_heads, key_dim, value_dim] fp32, updated in place.
        grid: the chunks of the T tokens.
        checkpoints: [slots, value_heads, key_dim, value_dim] fp32, written where the grid says.
        out_proj: the weight that `linear` multiplies the result by, if by any.

    Returns:
        [T, value_heads · value_dim] in projected's dtype, as `norm_for` returns a norm.
    """
    past = {"convolution": convolution, "recurrent": recurrent, "checkpoints": checkpoints}
    if uses_triton(projected):
        from qcn_kernels.gated_delta_net import triton

        return triton.prefill(projected, weights=weights, grid=grid, out_proj=out_proj, **past)
    return cpu.prefill(projected, weights=weights, grid=grid, **past)


def step(
    projected: Tensor,
    *,
    weights: DeltaNetWeights,
    ring: Tensor,
    position: Tensor,
    recurrent: Tensor,
) -> Tensor:
    """Read one token, number `position` of its sequence.

    Args:
        projected: [q | k | v | z | b | a], bf16 or fp32.
        weights: of the layer, fp32.
        ring: [kernel, conv_dim] fp32, the convolution's last inputs, that of token t in row
            t % kernel; the oldest is overwritten. `ring_from_state` makes one.
        position: [1] int64, on projected's device.
        recurrent: [value_heads, key_dim, value_dim] fp32, updated in place.

    Returns:
        [value_heads · value_dim] in projected's dtype.
    """
    if uses_triton(projected):
        from qcn_kernels.gated_delta_net import triton

        return triton.step(
            projected, weights=weights, ring=ring, position=position, recurrent=recurrent
        )
    out = reference.step(
        projected.float(), weights=weights, ring=ring, position=position, recurrent=recurrent
    )
    return out.to(projected.dtype)
