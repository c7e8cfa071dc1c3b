"""A Gated DeltaNet layer between its two projections. See README.md.

Where the tensors lie decides what runs; Triton is imported for tensors on a GPU only. On the CPU
the same is done operation by operation, prefill chunked.
"""

from torch import Tensor

from qcn_kernels.causal_conv1d import causal_conv1d
from qcn_kernels.gated_delta_net import reference
from qcn_kernels.gated_delta_net.reference import ring_from_state, state_from_ring
from qcn_kernels.gated_delta_net.weights import DeltaNetWeights
from qcn_kernels.gated_delta_rule import ChunkGrid, gated_delta_rule_on_grid
from qcn_kernels.rms_norm import gated_rms_norm, l2_norm

__all__ = ["DeltaNetWeights", "prefill", "ring_from_state", "state_from_ring", "step"]


def prefill(
    projected: Tensor,
    *,
    weights: DeltaNetWeights,
    convolution: Tensor,
    recurrent: Tensor,
    grid: ChunkGrid,
    checkpoints: Tensor,
) -> Tensor:
    """Read T tokens chunk by chunk.

    Args:
        projected: [T, q | k | v | z | b | a], bf16 or fp32.
        weights: of the layer, fp32.
        convolution: [kernel - 1, conv_dim] fp32, updated in place.
        recurrent: [value_heads, key_dim, value_dim] fp32, updated in place.
        grid: the chunks of the T tokens.
        checkpoints: [slots, value_heads, key_dim, value_dim] fp32, written where the grid says.

    Returns:
        [T, value_heads · value_dim] in projected's dtype.
    """
    if projected.is_cuda:
        from qcn_kernels.gated_delta_net import triton

        return triton.prefill(
            projected,
            weights=weights,
            convolution=convolution,
            recurrent=recurrent,
            grid=grid,
            checkpoints=checkpoints,
        )
    mixed, z, b, a = weights.split(projected.float())
    mixed = causal_conv1d(mixed, weight=weights.conv, state=convolution)
    q, k, v = weights.split_heads(mixed)
    g, beta = reference.gates(a=a, b=b, neg_a=weights.neg_a, dt_bias=weights.dt_bias)
    out = gated_delta_rule_on_grid(
        q=l2_norm(q) * weights.key_dim**-0.5,
        k=l2_norm(k),
        v=v,
        g=g,
        beta=beta,
        state=recurrent,
        grid=grid,
        checkpoints=checkpoints,
    )
    out = gated_rms_norm(out, gate=z.reshape(out.shape), scale=weights.norm, eps=weights.eps)
    return out.flatten(1).to(projected.dtype)


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
    if projected.is_cuda:
        from qcn_kernels.gated_delta_net import triton

        return triton.step(
            projected, weights=weights, ring=ring, position=position, recurrent=recurrent
        )
    out = reference.step(
        projected.float(), weights=weights, ring=ring, position=position, recurrent=recurrent
    )
    return out.to(projected.dtype)
