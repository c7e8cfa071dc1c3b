"""A forward pass of `qwen3_next` that trains fast on a few CPU cores.

The parameters are those of transformers' `Qwen3NextForCausalLM`, so what is saved is an ordinary
checkpoint. The computation is written out here once more, because the module's own forward spends
most of its time outside matrix products at this size. `tests/nano` holds the two to the same losses
and gradients.

What is compiled is what a compiler can fuse: the parts before and after the scan over chunks, the
attention, the experts. The scan itself is a loop of two products a chunk with a backward pass
written by hand; compiled, it would be unrolled into thousands of operations (tried: minutes).

Precision: matrix products in `compute` (bf16 in training); the residual stream, norms, softmax,
routing, decay, the triangular solve and the recurrent state in fp32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from transformers import Qwen3NextForCausalLM

CHUNK = 32  # tokens per chunk of the delta rule
IGNORED = -100  # a target without a loss


def linear(x: Tensor, weight: Tensor, compute: torch.dtype) -> Tensor:
    """`x @ weight.T` in the compute type."""
    return functional.linear(x.to(compute), weight.to(compute))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zero-centred RMS norm, fp32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1.0 + weight)


def l2_norm(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, fp32."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class DeltaWeights(NamedTuple):
    """Parameters of one Gated DeltaNet layer, as published; `taps` is the convolution's weight."""

    in_proj_qkvz: Tensor
    in_proj_ba: Tensor
    taps: Tensor
    a_log: Tensor
    dt_bias: Tensor
    norm: Tensor
    out_proj: Tensor


class DeltaShape(NamedTuple):
    """Heads and their sizes in a Gated DeltaNet layer."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int


class Chunks(NamedTuple):
    """What the chunks of a sequence know without their past; N chunks, M = batch * value heads."""

    system: Tensor  # [N, M, C, C] fp32: unit lower triangular, what is above the diagonal unused
    right: Tensor  # [N, M, C, V + K] fp32: the right sides of the system, for update and reading
    within: Tensor  # [N, M, C, C]: causal attention inside the chunk
    queries: Tensor  # [N, M, C, K]: for reading the state at the chunk's start
    keys: Tensor  # [N, M, C, K] fp32: for writing the state at the chunk's end
    decay: Tensor  # [N, M, 1, 1] fp32: of the state over the chunk


class ChunkScan(torch.autograd.Function):
    """The part of the delta rule that runs from chunk to chunk, in fp32.

    From `S_0 = 0`, for chunk i: `delta_i = update_i - reading_i @ S_i` and
    `S_{i+1} = decay_i S_i + key_i.T @ delta_i`. Backward is the same recurrence from the end.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, update: Tensor, reading: Tensor, key: Tensor, decay: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return every chunk's delta [N, M, C, V] and the state before it [N, M, K, V].

        `update` [N, M, C, V], `reading` and `key` [N, M, C, K], `decay` [N, M, 1, 1].
        """
        chunks, heads, _, key_dim = key.shape
        deltas = torch.empty_like(update)
        states = update.new_zeros(chunks + 1, heads, key_dim, update.shape[-1])
        for i in range(chunks):
            torch.baddbmm(update[i], reading[i], states[i], alpha=-1, out=deltas[i])
            torch.baddbmm(states[i] * decay[i], key[i].mT, deltas[i], out=states[i + 1])
        ctx.save_for_backward(reading, key, decay, deltas, states)
        return deltas, states[:-1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of the four inputs."""
        d_deltas, d_states = gradients
        reading, key, decay, deltas, states = ctx.saved_tensors
        d_update = torch.empty_like(deltas)
        after = torch.zeros_like(d_states)  # the gradient of S_{i+1}
        for i in reversed(range(len(key))):
            torch.baddbmm(d_deltas[i], key[i], after[i], out=d_update[i])
            if i:
                kept = torch.addcmul(d_states[i], after[i], decay[i])
                torch.baddbmm(kept, reading[i].mT, d_update[i], alpha=-1, out=after[i - 1])
        d_decay = (after * states[:-1]).sum((-2, -1), keepdim=True)
        return d_update, -(d_update @ states[:-1].mT), deltas @ after.mT, d_decay


def convolve(x: Tensor, taps: Tensor) -> Tensor:
    """The causal convolution of each channel of x [B, T, C] with taps [C, 1, W], then SiLU."""
    length, reach = x.shape[1], taps.shape[-1]
    padded = functional.pad(x, (0, 0, reach - 1, 0)).float()
    terms = [padded[:, i : i + length] * taps[:, 0, i] for i in range(reach)]
    return functional.silu(torch.stack(terms).sum(0))


def before_scan(
    x: Tensor, weights: DeltaWeights, shape: DeltaShape, compute: torch.dtype
) -> tuple[Chunks, Tensor]:
    """What the chunks of x [B, T, H] know of themselves, and the gate z [B, T, Hv, V]."""
    batch, length, _ = x.shape
    key_heads, heads, key_dim, value_dim = shape
    shared = heads // key_heads
    grouped = linear(x, weights.in_proj_qkvz, compute).view(batch, length, key_heads, -1)
    widths = [key_dim, key_dim, shared * value_dim, shared * value_dim]
    parts = torch.split(grouped, widths, dim=-1)
    *qkv, z = (part.reshape(batch, length, -1) for part in parts)
    mixed = convolve(torch.cat(qkv, dim=-1), weights.taps)
    widths = [key_heads * key_dim, key_heads * key_dim, heads * value_dim]
    q, k, v = torch.split(mixed, widths, dim=-1)
    ba = linear(x, weights.in_proj_ba, compute).float().view(batch, length, key_heads, -1)
    b, a = (part.reshape(batch, length, heads) for part in ba.chunk(2, dim=-1))
    g = -weights.a_log.exp() * functional.softplus(a + weights.dt_bias)

    def chunked(part: Tensor, count: int) -> Tensor:  # [B, T, count * D] -> [N, B, count, C, D]
        return part.reshape(batch, -1, CHUNK, count, part.shape[-1] // count).permute(1, 0, 3, 2, 4)

    def per_value_head(part: Tensor) -> Tensor:  # [B, T, Hv * D] -> [N, B, Hk, Hv / Hk, C, D]
        by_head = chunked(part, heads)
        return by_head.reshape(*by_head.shape[:2], key_heads, shared, *by_head.shape[3:])

    q = l2_norm(chunked(q, key_heads)) * key_dim**-0.5
    k = l2_norm(chunked(k, key_heads))
    total = per_value_head(g).squeeze(-1).cumsum(-1)
    beta = per_value_head(b.sigmoid())
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=x.device).triu(1)
    between = total.unsqueeze(-1) - total.unsqueeze(-2)
    between = between.masked_fill(later, float("-inf")).exp()

    products = (torch.stack([k, q]).to(compute) @ k.to(compute).mT).float().unsqueeze(4)
    q, k, grown = q.unsqueeze(3), k.unsqueeze(3), total.exp().unsqueeze(-1)
    chunks = (
        products[0] * between * beta,
        torch.cat([per_value_head(v) * beta, k * beta * grown], dim=-1),
        (products[1] * between).to(compute),
        (q * grown).to(compute),
        k * (total[..., -1:] - total).exp().unsqueeze(-1),
        grown[..., -1:, :],
    )
    gate = z.view(batch, length, heads, value_dim)
    return Chunks(*(part.flatten(1, 3).contiguous() for part in chunks)), gate


def after_scan(
    chunks: Chunks,
    deltas: Tensor,
    states: Tensor,
    z: Tensor,
    weights: DeltaWeights,
    eps: float,
    compute: torch.dtype,
) -> Tensor:
    """Read the states, then the gated norm and the output projection: [B, T, H], fp32."""
    batch, length, heads, _ = z.shape
    out = (chunks.queries @ states.to(compute)).float()
    out = out + (chunks.within @ deltas.to(compute)).float()  # [N, M, C, V]
    out = out.view(len(out), batch, heads, CHUNK, -1).permute(1, 0, 3, 2, 4).reshape(z.shape)
    out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + eps) * weights.norm
    out = out * functional.silu(z.float())
    return linear(out.reshape(batch, length, -1), weights.out_proj, compute).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the first `cos.shape[-1]` dimensions, half-rotation form."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)


class AttentionWeights(NamedTuple):
    """Parameters of one gated attention layer, as published."""

    q_proj: Tensor
    k_proj: Tensor
    v_proj: Tensor
    o_proj: Tensor
    q_norm: Tensor
    k_norm: Tensor


def gated_attention(
    x: Tensor,
    weights: AttentionWeights,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    compute: torch.dtype,
) -> Tensor:
    """Gated causal attention over x [B, T, H]; cos and sin [T, R]. Returns fp32."""
    batch, length, _ = x.shape
    dim = len(weights.q_norm)
    heads = linear(x, weights.q_proj, compute).view(batch, length, -1, 2 * dim)
    q, gate = heads.chunk(2, dim=-1)
    k = linear(x, weights.k_proj, compute).view(batch, length, -1, dim)
    v = linear(x, weights.v_proj, compute).view(batch, length, -1, dim).transpose(1, 2)
    q = rotate(rms_norm(q, weights.q_norm, eps).transpose(1, 2), cos, sin).to(compute)
    k = rotate(rms_norm(k, weights.k_norm, eps).transpose(1, 2), cos, sin).to(compute)
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    out = out.transpose(1, 2) * gate.float().sigmoid()
    return linear(out.reshape(batch, length, -1), weights.o_proj, compute).float()


class ExpertWeights(NamedTuple):
    """Parameters of one sparse layer; the routed experts packed, E of them."""

    router: Tensor  # [E, H]
    gate_up_proj: Tensor  # [E, 2 * I, H]
    down_proj: Tensor  # [E, H, I]
    shared_gate_proj: Tensor
    shared_up_proj: Tensor
    shared_down_proj: Tensor
    shared_scale: Tensor  # [1, H]


def mixture(
    x: Tensor, weights: ExpertWeights, top_k: int, normalised: bool, compute: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The sparse mixture of experts over x [B, T, H], and its balance loss (arXiv 2101.03961).

    Rows are sorted by expert, so that each expert is one product over its rows.
    """
    flat, experts = x.reshape(-1, x.shape[-1]), len(weights.router)
    probabilities = functional.linear(flat, weights.router).softmax(-1)
    shares, chosen = probabilities.topk(top_k, dim=-1)
    if normalised:
        shares = shares / shares.sum(-1, keepdim=True)
    load = functional.one_hot(chosen.reshape(-1), experts).sum(0)
    balance = experts * (load / len(flat) * probabilities.mean(0)).sum()

    order = chosen.reshape(-1).argsort(stable=True)
    ends = load.cumsum(0).to(torch.int32)
    rows, packed = flat.to(compute), weights.gate_up_proj.to(compute).mT
    gate, up = functional.grouped_mm(rows[order // top_k], packed, offs=ends).chunk(2, dim=-1)
    packed = weights.down_proj.to(compute).mT
    out = functional.grouped_mm(functional.silu(gate) * up, packed, offs=ends)
    places = torch.arange(order.numel(), device=order.device)
    back = torch.empty_like(order).scatter_(0, order, places)
    routed = (out[back].view(-1, top_k, x.shape[-1]).float() * shares.unsqueeze(-1)).sum(1)

    inner = functional.silu(linear(rows, weights.shared_gate_proj, compute))
    inner = inner * linear(rows, weights.shared_up_proj, compute)
    shared = linear(inner, weights.shared_down_proj, compute).float()
    shared = shared * functional.linear(flat, weights.shared_scale).sigmoid()
    return (routed + shared).view_as(x), balance


def token_losses(
    hidden: Tensor, embedding: Tensor, targets: Tensor, compute: torch.dtype
) -> Tensor:
    """Cross entropy in nats of each target [B, T]; 0 where it is `IGNORED`."""
    logits = linear(hidden, embedding, compute).float()
    return functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )


class Losses(NamedTuple):
    """Of one batch: `tokens` [B * T] in nats, 0 where ignored; `balance`, mean over the layers."""

    tokens: Tensor
    balance: Tensor


class Trainable:
    """The fast forward over a transformers model, its parts compiled or plain.

    transformers' modules declare no attribute types, hence the `Any` in the private methods.
    """

    def __init__(self, model: Qwen3NextForCausalLM, compute: torch.dtype, compiled: bool) -> None:
        self.model = model
        self._compute = compute

        def prepare(part: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(part, dynamic=False) if compiled else part

        self._before_scan, self._after_scan = prepare(before_scan), prepare(after_scan)
        self._attention, self._mixture = prepare(gated_attention), prepare(mixture)
        self._norm, self._token_losses = prepare(rms_norm), prepare(token_losses)

    def losses(self, ids: Tensor) -> Losses:
        """Next-token losses of ids [B, T]; T a multiple of `CHUNK`, negative ids are padding."""
        inner: Any = self.model.model
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        x = functional.embedding(ids.clamp(min=0), inner.embed_tokens.weight)
        cos, sin = (part[0] for part in inner.rotary_emb(x, positions))
        balances = []
        for layer in inner.layers:
            norm = layer.input_layernorm
            normed = self._norm(x, norm.weight, norm.eps)
            if layer.block_type == "linear_attention":
                x = x + self._delta_net(layer.linear_attn, normed)
            else:
                x = x + self._full_attention(layer.self_attn, normed, cos, sin)
            norm = layer.post_attention_layernorm
            mixed, balance = self._experts(layer.mlp, self._norm(x, norm.weight, norm.eps))
            x = x + mixed
            balances.append(balance)
        x = self._norm(x, inner.norm.weight, inner.norm.eps)
        targets = functional.pad(ids[:, 1:], (0, 1), value=-1)
        targets = targets.masked_fill(targets < 0, IGNORED)
        tokens = self._token_losses(x, inner.embed_tokens.weight, targets, self._compute)
        return Losses(tokens, torch.stack(balances).mean())

    def _delta_net(self, mixer: Any, x: Tensor) -> Tensor:
        shape = DeltaShape(mixer.num_k_heads, mixer.num_v_heads, mixer.head_k_dim, mixer.head_v_dim)
        weights = DeltaWeights(
            mixer.in_proj_qkvz.weight,
            mixer.in_proj_ba.weight,
            mixer.conv1d.weight,
            mixer.A_log,
            mixer.dt_bias,
            mixer.norm.weight,
            mixer.out_proj.weight,
        )
        chunks, z = self._before_scan(x, weights, shape, self._compute)
        solved = torch.linalg.solve_triangular(
            chunks.system, chunks.right, upper=False, unitriangular=True
        )
        halves = torch.split(solved, [shape.value_dim, shape.key_dim], dim=-1)
        update, reading = (half.contiguous() for half in halves)
        scan: Any = ChunkScan.apply  # torch declares no types for it
        deltas, states = scan(update, reading, chunks.keys, chunks.decay)
        eps = mixer.layer_norm_epsilon
        out: Tensor = self._after_scan(chunks, deltas, states, z, weights, eps, self._compute)
        return out

    def _full_attention(self, mixer: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        weights = AttentionWeights(
            mixer.q_proj.weight,
            mixer.k_proj.weight,
            mixer.v_proj.weight,
            mixer.o_proj.weight,
            mixer.q_norm.weight,
            mixer.k_norm.weight,
        )
        out: Tensor = self._attention(x, weights, cos, sin, mixer.q_norm.eps, self._compute)
        return out

    def _experts(self, mlp: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = ExpertWeights(
            mlp.gate.weight,
            mlp.experts.gate_up_proj,
            mlp.experts.down_proj,
            mlp.shared_expert.gate_proj.weight,
            mlp.shared_expert.up_proj.weight,
            mlp.shared_expert.down_proj.weight,
            mlp.shared_expert_gate.weight,
        )
        gate = mlp.gate
        out, balance = self._mixture(x, weights, gate.top_k, gate.norm_topk_prob, self._compute)
        return out, balance
