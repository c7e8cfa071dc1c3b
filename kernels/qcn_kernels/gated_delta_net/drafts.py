"""Drafted tokens through a Gated DeltaNet layer, whose past waits for how many of them stay.

On the CPU each layer's past waits by itself, for as many tokens as there are (`verify`). On a GPU
that of all layers waits in `Drafts`, at addresses that stay (`verify_step`, `commit`).
"""

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


@dataclass(frozen=True, slots=True)
class Drafts:
    """Room for what a few drafted tokens would do to the past; all fp32. On a GPU only.

    Of all layers, or, without the first dimension, of one.
    """

    inputs: Tensor  # [layers, rows, channels], of the convolution
    keys: Tensor  # [layers, rows, key_heads, key_dim], l2-normalised
    errors: Tensor  # [layers, rows, value_heads, value_dim], what each token corrects
    total: Tensor  # [layers, rows, value_heads], logarithm of the decay from the past to each

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All four."""
        return self.inputs, self.keys, self.errors, self.total

    def layer(self, slot: int) -> "Drafts":
        """Return one layer's; views."""
        return Drafts(*(tensor[slot] for tensor in self.tensors))

    def first(self, rows: int) -> "Drafts":
        """Return all layers' first rows; views."""
        return Drafts(*(tensor[:, :rows] for tensor in self.tensors))


def verify_step(
    projected: Tensor,
    *,
    weights: DeltaNetWeights,
    ring: Tensor,
    position: Tensor,
    recurrent: Tensor,
    drafts: Drafts,
) -> Tensor:
    """Read a few drafted tokens; the past is left as it is. On a GPU only.

    Args:
        projected: [T, q | k | v | z | b | a], bf16 or fp32.
        weights: of the layer, fp32.
        ring: [kernel, conv_dim] fp32, the convolution's last inputs; see `step`.
        position: [1] int64, of the first of the tokens.
        recurrent: [value_heads, key_dim, value_dim] fp32.
        drafts: of one layer, at least T rows; the first T are written.

    Returns:
        [T, value_heads · value_dim] in projected's dtype.
    """
    from qcn_kernels.gated_delta_net import triton_verify

    past = {"ring": ring, "position": position, "recurrent": recurrent}
    return triton_verify.verify_step(projected, weights=weights, drafts=drafts, **past)


def commit(
    drafts: Drafts, tokens: Tensor, *, rings: Tensor, position: Tensor, recurrent: Tensor
) -> None:
    """Take the first of the drafted tokens into the past of all layers. On a GPU only.

    Args:
        drafts: of all layers, as `verify_step` left them.
        tokens: [1] int32, how many.
        rings: [layers, kernel, conv_dim] fp32, updated in place.
        position: [1] int64, of the first of them; left as it is.
        recurrent: [layers, value_heads, key_dim, value_dim] fp32, updated in place.
    """
    from qcn_kernels.gated_delta_net import triton_verify

    triton_verify.commit(drafts, tokens, rings=rings, position=position, recurrent=recurrent)
