"""A Gated DeltaNet layer between its projections on the CPU, in few torch calls."""

from torch import Tensor

from qcn_kernels.causal_conv1d.reference import causal_conv1d, causal_conv1d_step
from qcn_kernels.gated_delta_net.reference import gates
from qcn_kernels.gated_delta_net.weights import DeltaNetWeights
from qcn_kernels.gated_delta_rule import (
    ChunkGrid,
    gated_delta_rule_on_grid,
    gated_delta_rule_step,
)
from qcn_kernels.rms_norm.reference import gated_rms_norm, l2_norm


def prefill(
    projected: Tensor,
    *,
    weights: DeltaNetWeights,
    convolution: Tensor,
    recurrent: Tensor,
    grid: ChunkGrid,
    checkpoints: Tensor,
) -> Tensor:
    """Read T tokens chunk by chunk."""
    mixed, z, b, a = weights.split(projected.float())
    mixed = causal_conv1d(mixed, weight=weights.conv, state=convolution)
    q, k, v = normalised_heads(mixed, weights)
    g, beta = gates(a=a, b=b, neg_a=weights.neg_a, dt_bias=weights.dt_bias)
    out = gated_delta_rule_on_grid(
        q=q, k=k, v=v, g=g, beta=beta, state=recurrent, grid=grid, checkpoints=checkpoints
    )
    out = gated_rms_norm(out, gate=z.reshape(out.shape), scale=weights.norm, eps=weights.eps)
    return out.flatten(1).to(projected.dtype)


def step(
    projected: Tensor, *, weights: DeltaNetWeights, convolution: Tensor, recurrent: Tensor
) -> Tensor:
    """Read one token; the convolution's state lies oldest first, not in a ring."""
    mixed, z, b, a = weights.split(projected.float())
    mixed = causal_conv1d_step(mixed, weight=weights.conv, state=convolution)
    q, k, v = normalised_heads(mixed, weights)
    g, beta = gates(a=a, b=b, neg_a=weights.neg_a, dt_bias=weights.dt_bias)
    out = gated_delta_rule_step(q=q, k=k, v=v, g=g, beta=beta, state=recurrent)
    out = gated_rms_norm(out, gate=z.view(out.shape), scale=weights.norm, eps=weights.eps)
    return out.flatten().to(projected.dtype)


def normalised_heads(mixed: Tensor, weights: DeltaNetWeights) -> tuple[Tensor, Tensor, Tensor]:
    """Cut [..., q | k | v] into heads; normalise q and k, and scale q."""
    tokens, keys = mixed.shape[:-1], weights.key_heads * weights.key_dim
    values = weights.value_heads * weights.value_dim
    q_k, v = mixed.split_with_sizes((2 * keys, values), dim=-1)
    q_k = q_k.reshape(*tokens, 2, weights.key_heads, weights.key_dim)
    q, k = l2_norm(q_k).unbind(-3)
    v = v.reshape(*tokens, weights.value_heads, weights.value_dim)
    return q * weights.key_dim**-0.5, k, v
