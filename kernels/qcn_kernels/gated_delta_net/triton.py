"""A Gated DeltaNet layer between its projections on a GPU: a step is one launch.

A step has one program per value head, which holds the head's state in registers from its reading to
its writing and can therefore normalise its output. A key head's convolution is computed by each of
the programs it serves. That is why the convolution's past is a ring of `kernel` rows: the row one
of them writes is the one none of them reads.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.causal_conv1d.triton import causal_conv1d_l2_norm
from qcn_kernels.fp8 import BLOCK, Activations
from qcn_kernels.gated_delta_net.weights import DeltaNetWeights
from qcn_kernels.gated_delta_rule.grid import ChunkGrid
from qcn_kernels.gated_delta_rule.triton import chunk_gated_delta_rule
from qcn_kernels.launch import cdiv, kernel, next_power_of_2
from qcn_kernels.linear import Weight, reads_e4m3
from qcn_kernels.overlap.triton import await_previous, let_next_begin, overlapping, prefetch
from qcn_kernels.rms_norm.triton import gated_rms_norm, gated_rms_norm_quantised

GATES_TILE = 1024  # elements of a program
STEP_WARPS = 4


@triton.jit
def _log_decay(b_a, b_neg_a, b_bias):
    """-exp(A_log) · softplus(a + bias), without overflow."""
    b_x = b_a.to(tl.float32) + b_bias
    return b_neg_a * (tl.maximum(b_x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(b_x))))


@kernel(do_not_specialize=["elements"])
def _gates(
    p_a, p_b, p_neg_a, p_bias, p_g, p_beta, elements, stride, HEADS: tl.constexpr, B: tl.constexpr
):
    o = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = o < elements
    i_t, i_head = o // HEADS, o % HEADS
    b_a = tl.load(p_a + i_t * stride + i_head, mask=mask, other=0.0)
    b_b = tl.load(p_b + i_t * stride + i_head, mask=mask, other=0.0).to(tl.float32)
    b_neg_a = tl.load(p_neg_a + i_head, mask=mask, other=0.0)
    b_bias = tl.load(p_bias + i_head, mask=mask, other=0.0)
    tl.store(p_g + o, _log_decay(b_a, b_neg_a, b_bias), mask=mask)
    tl.store(p_beta + o, tl.sigmoid(b_b), mask=mask)


@triton.jit
def _convolved(p_x, p_ring, p_weight, position, o_c, mask, channels, KERNEL: tl.constexpr):
    """silu of the convolution at channels o_c, and the token's own input."""
    b_x = tl.load(p_x + o_c, mask=mask, other=0.0).to(tl.float32)
    b_y = b_x * tl.load(p_weight + (KERNEL - 1) * channels + o_c, mask=mask, other=0.0)
    for j in tl.static_range(KERNEL - 1):
        row = (position + 1 + j) % KERNEL
        b_old = tl.load(p_ring + row * channels + o_c, mask=mask, other=0.0)
        b_y += b_old * tl.load(p_weight + j * channels + o_c, mask=mask, other=0.0)
    return b_y * tl.sigmoid(b_y), b_x


@kernel()
def _step(
    p_projected,  # [q | k | v | z | b | a]
    p_conv,  # [KERNEL, channels] fp32
    p_ring,  # [KERNEL, channels] fp32, in and out
    p_position,  # [1] int64
    p_neg_a,
    p_bias,
    p_norm,
    p_state,  # [HEADS, K, V] fp32, in and out
    p_out,  # [HEADS · V]
    eps,
    scale,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    KERNEL: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    let_next_begin(OVERLAPS)
    i_head = tl.program_id(0)
    shared: tl.constexpr = HEADS // KEY_HEADS
    channels: tl.constexpr = 2 * KEY_HEADS * K + HEADS * V
    i_key = i_head // shared
    o_k, o_v = tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    at_q, at_v = i_key * K + o_k, 2 * KEY_HEADS * K + i_head * V + o_v
    at_k = KEY_HEADS * K + at_q
    at_state = (i_head * K + o_k[:, None]) * V + o_v[None, :]
    m_state = m_k[:, None] & m_v[None, :]
    at_z = channels + i_head * V + o_v
    at_b = channels + HEADS * V + i_head
    b_neg_a, b_bias = tl.load(p_neg_a + i_head), tl.load(p_bias + i_head)
    b_norm = tl.load(p_norm + o_v, mask=m_v, other=0.0)
    prefetch(p_state + (i_head * K + tl.minimum(o_k, K - 1)) * V, 4 * V, OVERLAPS)
    await_previous(OVERLAPS)
    position = tl.load(p_position)
    b_s = tl.load(p_state + at_state, mask=m_state, other=0.0)
    b_z = tl.load(p_projected + at_z, mask=m_v, other=0.0).to(tl.float32)
    b_b, b_a = tl.load(p_projected + at_b).to(tl.float32), tl.load(p_projected + at_b + HEADS)

    q, q_in = _convolved(p_projected, p_ring, p_conv, position, at_q, m_k, channels, KERNEL)
    k, k_in = _convolved(p_projected, p_ring, p_conv, position, at_k, m_k, channels, KERNEL)
    v, v_in = _convolved(p_projected, p_ring, p_conv, position, at_v, m_v, channels, KERNEL)
    p_row = p_ring + position % KERNEL * channels
    tl.store(p_row + at_v, v_in, mask=m_v)
    if i_head % shared == 0:  # the first of the heads a key head serves
        tl.store(p_row + at_q, q_in, mask=m_k)
        tl.store(p_row + at_k, k_in, mask=m_k)
    q *= tl.rsqrt(tl.sum(q * q, axis=0) + 1e-6) * scale
    k *= tl.rsqrt(tl.sum(k * k, axis=0) + 1e-6)

    beta = tl.sigmoid(b_b)
    b_s *= tl.exp(_log_decay(b_a, b_neg_a, b_bias))
    error = beta * (v - tl.sum(b_s * k[:, None], axis=0))
    b_s += k[:, None] * error[None, :]
    tl.store(p_state + at_state, b_s, mask=m_state)
    out = tl.sum(b_s * q[:, None], axis=0)

    out *= tl.rsqrt(tl.sum(out * out, axis=0) / V + eps)
    out *= b_norm * b_z * tl.sigmoid(b_z)
    tl.store(p_out + i_head * V + o_v, out.to(p_out.dtype.element_ty), mask=m_v)


def gates(*, a: Tensor, b: Tensor, neg_a: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return g and beta, [T, value_heads] fp32, as `reference.gates`; a, b: [T, value_heads]."""
    tokens, heads = a.shape
    assert a.stride() == b.stride()
    assert a.stride(1) == 1
    assert neg_a.dtype == dt_bias.dtype == torch.float32
    g = a.new_empty(tokens, heads, dtype=torch.float32)
    beta = torch.empty_like(g)
    _gates[(cdiv(g.numel(), GATES_TILE),)](
        a,
        b,
        neg_a,
        dt_bias,
        g,
        beta,
        g.numel(),
        a.stride(0),
        HEADS=heads,
        B=GATES_TILE,
        num_warps=4,
    )
    return g, beta


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
    """Read T tokens chunk by chunk; as `reference.prefill`, in projected's dtype.

    Args:
        projected: [T, q | k | v | z | b | a] bf16 or fp32.
        weights: of the layer, fp32.
        convolution: [kernel - 1, conv_dim] fp32, updated in place.
        recurrent: [value_heads, key_dim, value_dim] fp32, updated in place.
        grid: the chunks of the T tokens.
        checkpoints: [slots, value_heads, key_dim, value_dim] fp32, written where the grid says.
        out_proj: the weight that `linear` multiplies the result by, if by any: where it reads FP8,
            the result comes quantised as well, which spares a launch.
    """
    mixed, z, b, a = weights.split(projected)
    mixed = causal_conv1d_l2_norm(
        mixed,
        weight=weights.conv,
        state=convolution,
        head_dim=weights.key_dim,
        normalised=2 * weights.key_heads,
        scaled=weights.key_heads,
    )
    q, k, v = weights.split_heads(mixed)
    g, beta = gates(a=a, b=b, neg_a=weights.neg_a, dt_bias=weights.dt_bias)
    out = chunk_gated_delta_rule(
        q=q, k=k, v=v, g=g, beta=beta, state=recurrent, grid=grid, checkpoints=checkpoints
    )
    gate = z.view(out.shape)
    norm: dict[str, Any] = {"scale": weights.norm, "eps": weights.eps, "dtype": out.dtype}
    if out_proj is not None and reads_e4m3(out_proj) and weights.value_dim % BLOCK == 0:
        return gated_rms_norm_quantised(out, gate=gate, **norm)
    return gated_rms_norm(out, gate=gate, **norm).flatten(1)


def step(
    projected: Tensor,
    *,
    weights: DeltaNetWeights,
    ring: Tensor,
    position: Tensor,
    recurrent: Tensor,
) -> Tensor:
    """Read one token in one launch; as `reference.step`, in projected's dtype.

    Nothing here waits for the device, and every address stays: a CUDA graph may hold it.
    """
    heads, key_dim, value_dim = recurrent.shape
    kernel, channels = weights.conv.shape
    assert projected.shape == (channels + heads * value_dim + 2 * heads,)
    assert channels == 2 * weights.key_heads * key_dim + heads * value_dim
    assert ring.shape == weights.conv.shape
    assert position.dtype == torch.int64
    assert ring.dtype == recurrent.dtype == weights.conv.dtype == torch.float32
    assert projected.is_contiguous()
    assert ring.is_contiguous()
    assert recurrent.is_contiguous()
    assert weights.conv.is_contiguous()
    out = projected.new_empty(heads * value_dim)
    _step[(heads,)](
        projected,
        weights.conv,
        ring,
        position,
        weights.neg_a,
        weights.dt_bias,
        weights.norm,
        recurrent,
        out,
        weights.eps,
        key_dim**-0.5,
        HEADS=heads,
        KEY_HEADS=weights.key_heads,
        K=key_dim,
        V=value_dim,
        KERNEL=kernel,
        BK=next_power_of_2(key_dim),
        BV=next_power_of_2(value_dim),
        num_warps=STEP_WARPS,
        **overlapping(projected),
    )
    return out
