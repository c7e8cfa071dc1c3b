"""The parts of a decoder layer: for T tokens (`prefill`), for one (`decode`), for a few (`verify`).

The residual stream is fp32. Matrix products run in the weights' dtype, everything between them
(norms, convolution, decay, router, state) in fp32. Weights are kept as decode wants them: what
reads the same input is one matrix, what a formula adds or negates is done once at load
(`weights.py`). One token is a vector, not a matrix of one row: at these sizes decode is the cost of
its torch calls. A few drafted tokens that are verified on a GPU go by kernels of their own, bound
by the bytes of weights; on the CPU they are prefilled.
"""

from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from qcn_kernels.fp8 import Activations, plain
from qcn_kernels.gated_delta_net import DeltaNetWeights
from qcn_kernels.gating import gated
from qcn_kernels.linear import (
    Weight,
    add_linear_few,
    add_linear_step,
    gated_for,
    linear,
    linear_few,
    linear_step,
    norm_for,
)
from qcn_kernels.moe import (
    Matrices,
    SharedExpert,
    add_experts,
    add_experts_few,
    add_experts_step,
    route,
    shared_step,
)
from qcn_kernels.rms_norm import Normed, normed, rms_norm
from qcn_kernels.rotary import rms_norm_rotary
from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.state import State


class Seat(Protocol):
    """The past of a sequence of which one token is read: a `State`, or what stands for it."""

    def mix_step(self, slot: int, projected: Tensor, weights: DeltaNetWeights) -> Tensor:
        """Read a token in a Gated DeltaNet layer; see `State.mix_step`."""

    def attend_step(self, slot: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Read a token in an attention layer; see `State.attend_step`."""


class DraftSeat(Protocol):
    """The past of a sequence behind which a few drafted tokens are read; it waits for a commit."""

    def mix_drafts(self, slot: int, projected: Tensor, weights: DeltaNetWeights) -> Tensor:
        """Read the tokens in a Gated DeltaNet layer; shapes as in `State.mix`."""

    def attend_drafts(self, slot: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Read the tokens in an attention layer; shapes as in `State.attend`."""


class ChosenExperts(TypedDict):
    """Experts beside the rest of a layer, as `qcn_kernels.moe` takes them."""

    gate_up: Matrices  # [experts, 2 · intermediate, hidden], the gate's rows first
    down: Matrices  # [experts, hidden, intermediate]
    chosen: Tensor  # [..., top_k] int64, numbers of these


class RoutedExperts(Protocol):
    """Runs a layer's routed experts where they do not lie beside the rest; as `qcn_kernels.moe`."""

    @property
    def computes_missing(self) -> bool:
        """Whether a token goes through `step`; else it finds its experts where `placed` says."""

    def begin_tokens(self) -> None:
        """Called before tokens are run that `placed` is asked for."""

    def placed(self, chosen: Tensor) -> ChosenExperts:
        """Bring what a few tokens chose [..., top_k]."""

    def prefill(
        self, to: Tensor, x: Tensor, *, weights: Tensor, chosen: Tensor, shared: SharedExpert
    ) -> None:
        """Add T tokens' experts to their residual stream; see `add_experts`."""

    def step(self, x: Tensor, *, weights: Tensor, chosen: Tensor) -> Tensor:
        """Run one token through its experts; see `experts_step`."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Rotary tables for the tokens at hand, computed once for all attention layers."""

    cos: Tensor  # [T, rotary_dim] fp32
    sin: Tensor


@dataclass(frozen=True, slots=True)
class GatedDeltaNet:
    """Gated DeltaNet (arXiv 2412.06464) as Qwen3-Next uses it."""

    config: ModelConfig
    slot: int  # number among the DeltaNet layers
    in_proj: Weight  # [conv_dim + value_dim + 2 · value_heads, hidden]: q | k | v | z | b | a
    conv: Tensor  # [kernel, conv_dim] fp32
    neg_a: Tensor  # [value_heads] fp32, -exp(A_log)
    dt_bias: Tensor  # [value_heads] fp32
    norm: Tensor  # [value_head_dim] fp32
    out_proj: Weight  # [hidden, value_dim]
    small: DeltaNetWeights = field(init=False)  # what stands between the two projections

    def __post_init__(self) -> None:
        """Put the small weights together once."""
        small = DeltaNetWeights(
            conv=self.conv,
            neg_a=self.neg_a,
            dt_bias=self.dt_bias,
            norm=self.norm,
            eps=self.config.rms_norm_eps,
            key_heads=self.config.linear_num_key_heads,
            key_dim=self.config.linear_key_head_dim,
        )
        object.__setattr__(self, "small", small)

    def prefill(self, x: Activations, state: State, positions: Positions) -> Tensor:
        """Mix T normalised tokens [T, hidden] in the weights' dtype; return [T, hidden]."""
        del positions  # order is in the state
        projected = linear(x, self.in_proj)
        mixed = state.mix(self.slot, projected, self.small, self.out_proj)
        return linear(mixed, self.out_proj)

    def decode(self, x: Tensor, now: Tensor | Normed, seat: Seat, positions: Positions) -> None:
        """Mix one token; add to its residual stream x [hidden] fp32, whose norm is `now`."""
        del positions
        mixed = seat.mix_step(self.slot, linear_step(now, self.in_proj), self.small)
        add_linear_step(x, mixed, self.out_proj)

    def verify(self, x: Tensor, now: Tensor, seat: DraftSeat, positions: Positions) -> None:
        """Mix a few tokens; add to their residual stream x [T, hidden] fp32, of norm `now`."""
        del positions
        mixed = seat.mix_drafts(self.slot, linear_few(now, self.in_proj), self.small)
        add_linear_few(x, mixed, self.out_proj)


@dataclass(frozen=True, slots=True)
class GatedAttention:
    """Grouped-query attention with a sigmoid gate on its output (arXiv 2505.06708)."""

    config: ModelConfig
    slot: int  # number among the full-attention layers
    in_proj: Weight  # [(2 · heads + 2 · kv_heads) · head_dim, hidden]: q | k | v | gate
    in_bias: Tensor | None
    qk_norm: Tensor  # [heads + kv_heads, head_dim] fp32, 1 + weight
    out_proj: Weight  # [hidden, heads · head_dim]
    out_bias: Tensor | None

    def prefill(self, x: Activations, state: State, positions: Positions) -> Tensor:
        """Mix T normalised tokens [T, hidden] in the weights' dtype; return [T, hidden]."""
        projected = linear(x, self.in_proj, self.in_bias)
        q, k, v, gate = self._heads(projected, positions)
        out = state.attend(self.slot, q=q, k=k, v=v).flatten(1)
        mixed = gated_for(self.out_proj, out, gate=gate, gating="sigmoid")
        return linear(mixed, self.out_proj, self.out_bias)

    def decode(self, x: Tensor, now: Tensor | Normed, seat: Seat, positions: Positions) -> None:
        """Mix one token; add to its residual stream x [hidden] fp32, whose norm is `now`."""
        projected = linear_step(now, self.in_proj, self.in_bias)
        q, k, v, gate = self._heads(projected.unsqueeze(0), positions)
        out = seat.attend_step(self.slot, q=q[0], k=k[0], v=v[0]).flatten()
        add_linear_step(x, out, self.out_proj, self.out_bias, gate=gate[0], gating="sigmoid")

    def verify(self, x: Tensor, now: Tensor, seat: DraftSeat, positions: Positions) -> None:
        """Mix a few tokens; add to their residual stream x [T, hidden] fp32, of norm `now`."""
        projected = linear_few(now, self.in_proj, self.in_bias)
        q, k, v, gate = self._heads(projected, positions)
        out = seat.attend_drafts(self.slot, q=q, k=k, v=v).flatten(1)
        add_linear_few(x, gated(out, gate=gate, gating="sigmoid"), self.out_proj, self.out_bias)

    def _heads(
        self, projected: Tensor, positions: Positions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cut T tokens' projections into q, k, v [T, heads, head_dim], gate [T, heads · head_dim].

        q and k are normalised and turned in fp32; all come back in the weights' dtype.
        """
        config = self.config
        head_dim = config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        sizes = ((heads + kv_heads) * head_dim, kv_heads * head_dim, heads * head_dim)
        qk, v, gate = projected.split_with_sizes(sizes, dim=-1)
        qk = rms_norm_rotary(
            qk.reshape(-1, heads + kv_heads, head_dim),
            scale=self.qk_norm,
            eps=config.rms_norm_eps,
            cos=positions.cos,
            sin=positions.sin,
            dtype=projected.dtype,
        )
        q, k = qk.split_with_sizes((heads, kv_heads), dim=-2)
        return q, k, v.reshape(-1, kv_heads, head_dim), gate


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """One SwiGLU MLP (arXiv 2002.05202), in the place of experts."""

    gate_up: Weight  # [2 · intermediate, hidden], the gate's rows first
    down: Weight  # [hidden, intermediate]

    @property
    def in_proj(self) -> Weight:
        """What reads the norm of the residual stream."""
        return self.gate_up

    def prefill(self, x: Tensor, now: Activations) -> None:
        """Run T tokens; add to their residual stream x [T, hidden] fp32, whose norm is `now`."""
        gate, up = linear(now, self.gate_up).chunk(2, dim=-1)
        x += linear(gated_for(self.down, up, gate=gate, gating="silu"), self.down)

    def decode(self, x: Tensor, now: Tensor | Normed) -> None:
        """Run one token; add to its residual stream x [hidden] fp32, whose norm is `now`."""
        gate, up = linear_step(now, self.gate_up).chunk(2, dim=-1)
        add_linear_step(x, up, self.down, gate=gate, gating="silu")

    def verify(self, x: Tensor, now: Tensor) -> None:
        """Run a few tokens; add to their residual stream x [T, hidden] fp32, of norm `now`."""
        gate, up = linear_few(now, self.gate_up).chunk(2, dim=-1)
        add_linear_few(x, gated(up, gate=gate, gating="silu"), self.down)


@dataclass(frozen=True, slots=True)
class SparseMoe:
    """Routed experts and one shared expert behind a sigmoid gate."""

    config: ModelConfig
    in_proj: Weight  # [2 · shared intermediate + experts + 1, hidden], see `_split`
    gate_up: Matrices  # [experts, 2 · intermediate, hidden], the gate's rows first
    down: Matrices  # [experts, hidden, intermediate]
    shared_down: Weight  # [hidden, shared intermediate]
    elsewhere: RoutedExperts | None = None  # runs `gate_up` and `down`, which lie in host memory

    def prefill(self, x: Tensor, now: Activations) -> None:
        """Run T tokens; add to their residual stream x [T, hidden] fp32, whose norm is `now`."""
        logits, gate, gate_up = self._split(linear(now, self.in_proj))
        weights, chosen = self._route(logits)
        shared = SharedExpert(gate, gate_up, self.shared_down)
        if self.elsewhere is not None:
            self.elsewhere.prefill(x, plain(now), weights=weights, chosen=chosen, shared=shared)
            return
        add_experts(
            x,
            now,
            weights=weights,
            chosen=chosen,
            gate_up=self.gate_up,
            down=self.down,
            shared=shared,
        )

    def decode(self, x: Tensor, now: Tensor | Normed) -> None:
        """Run one token; add to its residual stream x [hidden] fp32, whose norm is `now`."""
        computes_missing = self.elsewhere is not None and self.elsewhere.computes_missing
        if computes_missing and isinstance(now, Normed):
            now = now.taken(self.in_proj.dtype)
        logits, gate, gate_up = self._split(linear_step(now, self.in_proj))
        weights, chosen = self._route(logits)
        shared = SharedExpert(gate, gate_up, self.shared_down)
        if computes_missing:
            assert self.elsewhere is not None
            assert isinstance(now, Tensor)
            routed = self.elsewhere.step(now, weights=weights, chosen=chosen)
            x += shared_step(shared).add_(routed)
            return
        add_experts_step(x, now, weights=weights, **self._placed(chosen), shared=shared)

    def verify(self, x: Tensor, now: Tensor) -> None:
        """Run a few tokens; add to their residual stream x [T, hidden] fp32, of norm `now`."""
        logits, gate, gate_up = self._split(linear_few(now, self.in_proj))
        weights, chosen = self._route(logits)
        shared = SharedExpert(gate, gate_up, self.shared_down)
        if self.elsewhere is not None and self.elsewhere.computes_missing:
            self.elsewhere.prefill(x, now, weights=weights, chosen=chosen, shared=shared)
            return
        add_experts_few(x, now, weights=weights, **self._placed(chosen), shared=shared)

    def _placed(self, chosen: Tensor) -> ChosenExperts:
        if self.elsewhere is not None:
            return self.elsewhere.placed(chosen)
        return {"gate_up": self.gate_up, "down": self.down, "chosen": chosen}

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut what `in_proj` gives into router's logits, shared expert's gate, its gate and up.

        The one column of the gate comes last: on a GPU all others then begin aligned.
        """
        size = self.config.shared_expert_intermediate_size
        gate_up, logits, gate = projected.split_with_sizes(
            (2 * size, self.config.num_experts, 1), dim=-1
        )
        return logits, gate, gate_up

    def _route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        return route(logits, top_k=config.num_experts_per_tok, normalise=config.norm_topk_prob)


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
        now = norm_for(self.mixer.in_proj, x, scale=self.mixer_norm, eps=self.eps)
        mixed = self.mixer.prefill(now, state, positions)
        self.mlp.prefill(
            x, norm_for(self.mlp.in_proj, x, scale=self.mlp_norm, eps=self.eps, added=mixed)
        )
        return x

    def decode(self, x: Tensor, seat: Seat, positions: Positions) -> Tensor:
        """Add this layer to one token's residual stream [hidden] fp32, in place."""
        dtype = self.mixer.in_proj.dtype
        now = normed(x, scale=self.mixer_norm, eps=self.eps, dtype=dtype)
        self.mixer.decode(x, now, seat, positions)
        self.mlp.decode(x, normed(x, scale=self.mlp_norm, eps=self.eps, dtype=dtype))
        return x

    def verify(self, x: Tensor, seat: DraftSeat, positions: Positions) -> Tensor:
        """Add this layer to a few drafted tokens' residual stream [T, hidden] fp32, in place.

        On a GPU only.
        """
        dtype = self.mixer.in_proj.dtype
        now = rms_norm(x, scale=self.mixer_norm, eps=self.eps, dtype=dtype)
        self.mixer.verify(x, now, seat, positions)
        now = rms_norm(x, scale=self.mlp_norm, eps=self.eps, dtype=dtype)
        self.mlp.verify(x, now)
        return x
