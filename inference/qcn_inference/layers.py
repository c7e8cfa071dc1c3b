"""The parts of a decoder layer, each with a path for T tokens (`prefill`) and for one (`decode`).

Drafted tokens take a third path (`verify`) where a part keeps what does not grow with the text: it
is left as it is until it is known how many of them stay. Elsewhere they are T tokens as any.

The residual stream is fp32. Matrix products run in the weights' dtype, everything between them
(norms, convolution, decay, router, state) in fp32. Weights are kept as decode wants them: what
reads the same input is one matrix, what a formula adds or negates is done once at load
(`weights.py`). One token is a vector, not a matrix of one row: at these sizes decode is the cost of
its torch calls.
"""

from dataclasses import dataclass

import torch
from qcn_kernels.attention import attention, attention_step
from qcn_kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from qcn_kernels.gated_delta_rule import (
    Verified,
    chunk_gated_delta_rule,
    commit_gated_delta_rule,
    gated_delta_rule_step,
    verify_gated_delta_rule,
)
from qcn_kernels.moe import Matrices, experts, experts_step, route
from qcn_kernels.rms_norm import gated_rms_norm, l2_norm, rms_norm
from qcn_kernels.rotary import apply_rotary
from torch import Tensor
from torch.nn import functional

from qcn_inference.config import ModelConfig
from qcn_inference.state import DeltaNetState, State


@dataclass(frozen=True, slots=True)
class Positions:
    """Rotary tables for the tokens at hand, computed once for all attention layers."""

    cos: Tensor  # [T, 1, rotary_dim] fp32, or [1, rotary_dim] for one token
    sin: Tensor


@dataclass(frozen=True, slots=True)
class DraftedDeltaNet:
    """What drafted tokens would do to one DeltaNet layer's past."""

    past: DeltaNetState
    inputs: Tensor  # [T, channels] fp32, of the convolution
    verified: Verified

    def commit(self, tokens: int) -> None:
        """Read the first `tokens` of them into the past, which is still what it was."""
        convolution = self.past.convolution
        history = torch.cat((convolution, self.inputs[:tokens]))
        convolution.copy_(history[tokens:])
        commit_gated_delta_rule(self.verified, tokens, state=self.past.recurrent)


@dataclass(frozen=True, slots=True)
class GatedDeltaNet:
    """Gated DeltaNet (arXiv 2412.06464) as Qwen3-Next uses it."""

    config: ModelConfig
    slot: int  # number among the DeltaNet layers
    in_proj: Tensor  # [conv_dim + value_dim + 2 · value_heads, hidden]: q | k | v | z | b | a
    conv: Tensor  # [kernel, conv_dim] fp32
    neg_a: Tensor  # [value_heads] fp32, -exp(A_log)
    dt_bias: Tensor  # [value_heads] fp32
    norm: Tensor  # [value_head_dim] fp32
    out_proj: Tensor  # [hidden, value_dim]

    def prefill(self, x: Tensor, state: State, positions: Positions) -> Tensor:
        """Mix T normalised tokens [T, hidden] fp32; return [T, hidden]."""
        del positions  # order is in the state
        projected = functional.linear(x.to(self.in_proj.dtype), self.in_proj).float()
        mixed, z, b, a = self._split(projected)
        past = state.deltanet[self.slot]
        mixed = causal_conv1d(mixed, weight=self.conv, state=past.convolution)
        q, k, v = self._heads(mixed)
        out = chunk_gated_delta_rule(
            q=q,
            k=k,
            v=v,
            g=self.neg_a * functional.softplus(a + self.dt_bias),
            beta=b.sigmoid(),
            state=past.recurrent,
        )
        out = gated_rms_norm(
            out, gate=z.reshape(out.shape), scale=self.norm, eps=self.config.rms_norm_eps
        )
        return functional.linear(out.flatten(1).to(self.out_proj.dtype), self.out_proj)

    def decode(self, x: Tensor, state: State, positions: Positions) -> Tensor:
        """Mix one normalised token [hidden] fp32; return [hidden]."""
        del positions
        projected = functional.linear(x.to(self.in_proj.dtype), self.in_proj).float()
        mixed, z, b, a = self._split(projected)
        past = state.deltanet[self.slot]
        mixed = causal_conv1d_step(mixed, weight=self.conv, state=past.convolution)
        q, k, v = self._heads(mixed)
        out = gated_delta_rule_step(
            q=q,
            k=k,
            v=v,
            g=self.neg_a * functional.softplus(a + self.dt_bias),
            beta=b.sigmoid(),
            state=past.recurrent,
        )
        out = gated_rms_norm(
            out, gate=z.view(out.shape), scale=self.norm, eps=self.config.rms_norm_eps
        )
        return functional.linear(out.flatten().to(self.out_proj.dtype), self.out_proj)

    def verify(self, x: Tensor, state: State) -> tuple[Tensor, DraftedDeltaNet]:
        """As `prefill`; the state is left as it is, and what it would become comes back."""
        projected = functional.linear(x.to(self.in_proj.dtype), self.in_proj).float()
        inputs, z, b, a = self._split(projected)
        past = state.deltanet[self.slot]
        mixed = causal_conv1d(inputs, weight=self.conv, state=past.convolution.clone())
        q, k, v = self._heads(mixed)
        out, verified = verify_gated_delta_rule(
            q=q,
            k=k,
            v=v,
            g=self.neg_a * functional.softplus(a + self.dt_bias),
            beta=b.sigmoid(),
            state=past.recurrent,
        )
        out = gated_rms_norm(
            out, gate=z.reshape(out.shape), scale=self.norm, eps=self.config.rms_norm_eps
        )
        mixed_out = functional.linear(out.flatten(1).to(self.out_proj.dtype), self.out_proj)
        return mixed_out, DraftedDeltaNet(past, inputs, verified)

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        """Cut the projection into the convolution's input, z, b and a."""
        config = self.config
        heads = config.linear_num_value_heads
        sizes = (config.linear_conv_dim, config.linear_value_dim, heads, heads)
        return torch.split_with_sizes(projected, sizes, dim=-1)

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut [..., conv_dim] into q, k [..., key_heads, key_dim] and v; normalise q and k."""
        config = self.config
        tokens = mixed.shape[:-1]
        qk, v = mixed.split_with_sizes((2 * config.linear_key_dim, config.linear_value_dim), dim=-1)
        key_shape = (config.linear_num_key_heads, config.linear_key_head_dim)
        q, k = l2_norm(qk.reshape(*tokens, 2, *key_shape)).unbind(-3)
        v = v.reshape(*tokens, config.linear_num_value_heads, config.linear_value_head_dim)
        return q * config.linear_key_head_dim**-0.5, k, v


@dataclass(frozen=True, slots=True)
class GatedAttention:
    """Grouped-query attention with a sigmoid gate on its output (arXiv 2505.06708)."""

    config: ModelConfig
    slot: int  # number among the full-attention layers
    in_proj: Tensor  # [(2 · heads + 2 · kv_heads) · head_dim, hidden]: q | k | v | gate
    in_bias: Tensor | None
    qk_norm: Tensor  # [heads + kv_heads, head_dim] fp32, 1 + weight
    out_proj: Tensor  # [hidden, heads · head_dim]
    out_bias: Tensor | None

    def prefill(self, x: Tensor, state: State, positions: Positions) -> Tensor:
        """Mix T normalised tokens [T, hidden] fp32; return [T, hidden]."""
        projected = functional.linear(x.to(self.in_proj.dtype), self.in_proj, self.in_bias)
        q, k, v, gate = self._heads(projected, positions)
        k, v = state.extend_kv(self.slot, k=k.transpose(0, 1), v=v.transpose(0, 1))
        out = attention(q=q.transpose(0, 1).contiguous(), k=k, v=v)
        out = out.transpose(0, 1).flatten(1) * gate.sigmoid()
        return functional.linear(out, self.out_proj, self.out_bias)

    def decode(self, x: Tensor, state: State, positions: Positions) -> Tensor:
        """Mix one normalised token [hidden] fp32; return [hidden]."""
        projected = functional.linear(x.to(self.in_proj.dtype), self.in_proj, self.in_bias)
        q, k, v, gate = self._heads(projected, positions)
        k, v = state.extend_kv(self.slot, k=k.unsqueeze(1), v=v.unsqueeze(1))
        out = attention_step(q=q, k=k, v=v).flatten() * gate.sigmoid()
        return functional.linear(out, self.out_proj, self.out_bias)

    def _heads(
        self, projected: Tensor, positions: Positions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cut the projection into q, k, v [..., heads, head_dim] and gate [..., heads · head_dim].

        q and k are normalised and turned in fp32; all come back in the weights' dtype.
        """
        config = self.config
        tokens, head_dim = projected.shape[:-1], config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        sizes = ((heads + kv_heads) * head_dim, kv_heads * head_dim, heads * head_dim)
        qk, v, gate = projected.split_with_sizes(sizes, dim=-1)
        qk = qk.to(torch.float32).reshape(*tokens, heads + kv_heads, head_dim)
        qk = rms_norm(qk, scale=self.qk_norm, eps=config.rms_norm_eps)
        qk = apply_rotary(qk, cos=positions.cos, sin=positions.sin).to(projected.dtype)
        q, k = qk.split_with_sizes((heads, kv_heads), dim=-2)
        return q, k, v.reshape(*tokens, kv_heads, head_dim), gate


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """One SwiGLU MLP (arXiv 2002.05202), in the place of experts."""

    gate_up: Tensor  # [2 · intermediate, hidden], the gate's rows first
    down: Tensor  # [hidden, intermediate]

    def prefill(self, x: Tensor) -> Tensor:
        """Map [..., hidden] fp32 to [..., hidden]."""
        gate, up = functional.linear(x.to(self.gate_up.dtype), self.gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate).mul_(up), self.down)

    decode = prefill


@dataclass(frozen=True, slots=True)
class SparseMoe:
    """Routed experts and one shared expert behind a sigmoid gate."""

    config: ModelConfig
    in_proj: Tensor  # [experts + 1 + 2 · shared intermediate, hidden], see `_project`
    gate_up: Matrices  # [experts, 2 · intermediate, hidden], the gate's rows first
    down: Matrices  # [experts, hidden, intermediate]
    shared_down: Tensor  # [hidden, shared intermediate]

    def prefill(self, x: Tensor) -> Tensor:
        """Map [T, hidden] fp32 to [T, hidden] fp32."""
        x = x.to(self.in_proj.dtype)
        weights, chosen, shared = self._project(x)
        return shared.add_(
            experts(x, weights=weights, chosen=chosen, gate_up=self.gate_up, down=self.down)
        )

    def decode(self, x: Tensor) -> Tensor:
        """Map [hidden] fp32 to [hidden] fp32."""
        x = x.to(self.in_proj.dtype)
        weights, chosen, shared = self._project(x)
        return shared.add_(
            experts_step(x, weights=weights, chosen=chosen, gate_up=self.gate_up, down=self.down)
        )

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the router's weights and choice, and the gated output of the shared expert.

        All read the same input: `in_proj` is router | gate of the shared expert | its gate and up.
        """
        config = self.config
        size = config.shared_expert_intermediate_size
        projected = functional.linear(x, self.in_proj)
        logits, shared_gate, gate, up = projected.split_with_sizes(
            (config.num_experts, 1, size, size), dim=-1
        )
        weights, chosen = route(
            logits.to(torch.float32),
            top_k=config.num_experts_per_tok,
            normalise=config.norm_topk_prob,
        )
        shared = functional.linear(functional.silu(gate).mul_(up), self.shared_down)
        return weights, chosen, shared.to(torch.float32).mul_(shared_gate.sigmoid())


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """A token mixer and a feed-forward, each behind a norm and added to the residual stream."""

    eps: float
    mixer_norm: Tensor  # [hidden] fp32, 1 + weight
    mixer: GatedDeltaNet | GatedAttention
    mlp_norm: Tensor  # [hidden] fp32, 1 + weight
    mlp: SparseMoe | DenseMlp

    def prefill(self, x: Tensor, state: State, positions: Positions) -> Tensor:
        """Add this layer to T tokens' residual stream [T, hidden] fp32, in place."""
        x += self.mixer.prefill(rms_norm(x, scale=self.mixer_norm, eps=self.eps), state, positions)
        x += self.mlp.prefill(rms_norm(x, scale=self.mlp_norm, eps=self.eps))
        return x

    def decode(self, x: Tensor, state: State, positions: Positions) -> Tensor:
        """Add this layer to one token's residual stream [hidden] fp32, in place."""
        x += self.mixer.decode(rms_norm(x, scale=self.mixer_norm, eps=self.eps), state, positions)
        x += self.mlp.decode(rms_norm(x, scale=self.mlp_norm, eps=self.eps))
        return x

    def verify(
        self, x: Tensor, state: State, positions: Positions
    ) -> tuple[Tensor, DraftedDeltaNet | None]:
        """As `prefill`, for drafted tokens; with what a DeltaNet layer's past would become.

        Keys and values are appended: those of tokens that do not stay are written over.
        """
        normed, drafted = rms_norm(x, scale=self.mixer_norm, eps=self.eps), None
        if isinstance(self.mixer, GatedDeltaNet):
            mixed, drafted = self.mixer.verify(normed, state)
        else:
            mixed = self.mixer.prefill(normed, state, positions)
        x += mixed
        x += self.mlp.prefill(rms_norm(x, scale=self.mlp_norm, eps=self.eps))
        return x, drafted
