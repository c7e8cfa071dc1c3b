"""What lies between the projections of a Gated DeltaNet layer, written out (arXiv 2412.06464)."""

import torch
from torch import Tensor
from torch.nn import functional

from qcn_kernels.causal_conv1d.reference import causal_conv1d
from qcn_kernels.gated_delta_net.weights import DeltaNetWeights
from qcn_kernels.gated_delta_rule.reference import gated_delta_rule
from qcn_kernels.rms_norm.reference import gated_rms_norm, l2_norm


def gates(*, a: Tensor, b: Tensor, neg_a: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the decay and the strength of the correction, g and beta.

    Args:
        a, b: [..., value_heads], from the projection.
        neg_a: [value_heads], -exp(A_log).
        dt_bias: [value_heads].
    """
    return neg_a * functional.softplus(a + dt_bias), b.sigmoid()


def prefill(
    projected: Tensor, *, weights: DeltaNetWeights, convolution: Tensor, recurrent: Tensor
) -> Tensor:
    """Read T tokens, one after the other.

    Args:
        projected: [T, q | k | v | z | b | a].
        weights: of the layer, in projected's dtype.
        convolution: [kernel - 1, conv_dim], updated in place.
        recurrent: [value_heads, key_dim, value_dim], updated in place.

    Returns:
        [T, value_heads · value_dim].
    """
    heads, key_dim, value_dim = recurrent.shape
    mixed, z, b, a = weights.split(projected)
    mixed = causal_conv1d(mixed, weight=weights.conv, state=convolution)
    q, k, v = weights.split_heads(mixed)
    g, beta = gates(a=a, b=b, neg_a=weights.neg_a, dt_bias=weights.dt_bias)
    out = gated_delta_rule(
        q=l2_norm(q) * key_dim**-0.5, k=l2_norm(k), v=v, g=g, beta=beta, state=recurrent
    )
    gate = z.reshape(-1, heads, value_dim)
    return gated_rms_norm(out, gate=gate, scale=weights.norm, eps=weights.eps).flatten(1)


def step(
    projected: Tensor,
    *,
    weights: DeltaNetWeights,
    ring: Tensor,
    position: Tensor,
    recurrent: Tensor,
) -> Tensor:
    """Read one token, number `position` of its sequence; all else as in `prefill`.

    Args:
        projected: [q | k | v | z | b | a].
        weights: of the layer.
        ring: [kernel, conv_dim], the convolution's inputs, that of token t in row t % kernel. Its
            oldest row is overwritten by this token's.
        position: [1] int64.
        recurrent: [value_heads, key_dim, value_dim], updated in place.

    Returns:
        [value_heads · value_dim].
    """
    number = int(position)
    state = state_from_ring(ring, number)
    out = prefill(projected[None], weights=weights, convolution=state, recurrent=recurrent)[0]
    if len(state):
        ring[number % len(ring)] = state[-1]
    return out


def ring_from_state(state: Tensor, position: int) -> Tensor:
    """Return the ring in front of token `position` from a convolution's state, oldest first.

    Both may have further dimensions in front.
    """
    kernel = state.shape[-2] + 1
    ring = state.new_zeros(*state.shape[:-2], kernel, state.shape[-1])
    ring[..., _rows(kernel, position, state.device), :] = state
    return ring


def state_from_ring(ring: Tensor, position: int) -> Tensor:
    """Return a convolution's state in front of token `position`, oldest first, as a copy."""
    return ring[..., _rows(ring.shape[-2], position, ring.device), :]


def _rows(kernel: int, position: int, device: torch.device) -> Tensor:
    """Rows of the last kernel - 1 inputs in front of token `position`, oldest first."""
    return torch.arange(position + 1, position + kernel, device=device) % kernel
