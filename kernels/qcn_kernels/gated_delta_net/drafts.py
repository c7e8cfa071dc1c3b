"""Drafted tokens through a Gated DeltaNet layer, whose past waits for how many of them stay."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qcn_kernels.causal_conv1d import causal_conv1d
from qcn_kernels.gated_delta_net.cpu import normalised_heads
from qcn_kernels.gated_delta_net.reference import gates
from qcn_kernels.gated_delta_net.weights import DeltaNetWeights
from qcn_kernels.gated_delta_rule import (
    Verified,
    commit_gated_delta_rule,
    verify_gated_delta_rule,
)
from qcn_kernels.rms_norm import gated_rms_norm


@dataclass(frozen=True, slots=True)
class DraftedDeltaNet:
    """What drafted tokens would do to one layer's past."""

    convolution: Tensor  # the layer's own
    recurrent: Tensor
    inputs: Tensor  # [T, channels] fp32, of the convolution
    verified: Verified

    def commit(self, tokens: int) -> None:
        """Read the first `tokens` of them into the past, which is still what it was."""
        history = torch.cat((self.convolution, self.inputs[:tokens]))
        self.convolution.copy_(history[tokens:])
        commit_gated_delta_rule(self.verified, tokens, state=self.recurrent)


def verify(
    projected: Tensor, *, weights: DeltaNetWeights, convolution: Tensor, recurrent: Tensor
) -> tuple[Tensor, DraftedDeltaNet]:
    """Read drafted tokens; the past is left as it is, and what it would become comes back.

    Args:
        projected: [T, q | k | v | z | b | a], bf16 or fp32.
        weights: of the layer, fp32.
        convolution: [kernel - 1, conv_dim] fp32.
        recurrent: [value_heads, key_dim, value_dim] fp32.

    Returns:
        [T, value_heads · value_dim] in projected's dtype, and the change.
    """
    inputs, z, b, a = weights.split(projected.float())
    mixed = causal_conv1d(inputs, weight=weights.conv, state=convolution.clone())
    q, k, v = normalised_heads(mixed, weights)
    g, beta = gates(a=a, b=b, neg_a=weights.neg_a, dt_bias=weights.dt_bias)
    out, verified = verify_gated_delta_rule(q=q, k=k, v=v, g=g, beta=beta, state=recurrent)
    out = gated_rms_norm(out, gate=z.reshape(out.shape), scale=weights.norm, eps=weights.eps)
    drafted = DraftedDeltaNet(convolution, recurrent, inputs, verified)
    return out.flatten(1).to(projected.dtype), drafted
