"""Drafted tokens through a Gated DeltaNet layer on a GPU: three launches, and two to take them in.

What the recurrence reads is prepared for all tokens at once. Then a program, which is one warp, so
that nothing in it waits for another, has some value columns of one head and reads the tokens one
after the other with these columns of the state in registers. Instead of the state it leaves what
each token would change: its key and the error it corrects. The norm takes a head's columns together
again. How many tokens are taken in is read from the device, for all layers at once: whoever
accepted them waits for nothing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.gated_delta_net.drafts import Drafts
from qcn_kernels.gated_delta_net.triton import _log_decay
from qcn_kernels.gated_delta_net.weights import DeltaNetWeights
from qcn_kernels.launch import cdiv, kernel, next_power_of_2
from qcn_kernels.rms_norm.triton import gated_rms_norm

VERIFIED_COLUMNS = 16  # value columns of a warp: 64 registers of state a thread
COMMITTED_COLUMNS = 32  # value columns of a program: 4 warps hold 32 registers of state a thread
COMMITTED_CHANNELS = 1024


@triton.jit
def _convolved_at(
    i_t,
    p_x,  # [T, *]
    p_ring,  # [KERNEL, channels]
    p_weight,  # [KERNEL, channels]
    position,
    stride,
    o_c,
    mask,
    channels,
    KERNEL: tl.constexpr,
):
    """silu of token i_t's convolution at channels o_c, and its own input."""
    b_x = tl.load(p_x + i_t * stride + o_c, mask=mask, other=0.0).to(tl.float32)
    b_y = b_x * tl.load(p_weight + (KERNEL - 1) * channels + o_c, mask=mask, other=0.0)
    for j in tl.static_range(KERNEL - 1):
        i_in = i_t + (j - KERNEL + 1)
        row = (position + i_in + KERNEL) % KERNEL
        is_new = o_c * 0 + i_in >= 0
        new, old = mask & is_new, mask & ~is_new
        b_in = tl.load(p_x + i_in * stride + o_c, mask=new, other=0.0).to(tl.float32)
        b_in += tl.load(p_ring + row * channels + o_c, mask=old, other=0.0)
        b_y += b_in * tl.load(p_weight + j * channels + o_c, mask=mask, other=0.0)
    return b_y * tl.sigmoid(b_y), b_x


@kernel()
def _prepare(
    p_projected,  # [T, q | k | v | z | b | a]
    p_conv,  # [KERNEL, channels] fp32
    p_ring,  # [KERNEL, channels] fp32
    p_position,  # [1] int64
    p_neg_a,
    p_bias,
    p_inputs,  # [T, channels] fp32
    p_keys,  # [T, KEY_HEADS, K] fp32
    p_queries,  # [T, KEY_HEADS, K] fp32
    p_values,  # [T, HEADS, V] fp32
    p_gates,  # [T, 2, HEADS] fp32: logarithm of the decay, strength of the correction
    stride,
    scale,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    KERNEL: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """What the recurrence reads of one head of one token."""
    i_t, i_head = tl.program_id(0), tl.program_id(1)
    shared: tl.constexpr = HEADS // KEY_HEADS
    channels: tl.constexpr = 2 * KEY_HEADS * K + HEADS * V
    position = tl.load(p_position)
    o_k, o_v = tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    p_row = p_inputs + i_t * channels
    at_v = 2 * KEY_HEADS * K + i_head * V + o_v
    v, v_in = _convolved_at(
        i_t, p_projected, p_ring, p_conv, position, stride, at_v, m_v, channels, KERNEL
    )
    tl.store(p_row + at_v, v_in, mask=m_v)
    tl.store(p_values + i_t * (HEADS * V) + i_head * V + o_v, v, mask=m_v)
    p_b = p_projected + i_t * stride + channels + HEADS * V + i_head
    p_gates += i_t * (2 * HEADS) + i_head
    decay = _log_decay(tl.load(p_b + HEADS), tl.load(p_neg_a + i_head), tl.load(p_bias + i_head))
    tl.store(p_gates, decay)
    tl.store(p_gates + HEADS, tl.sigmoid(tl.load(p_b).to(tl.float32)))
    if i_head % shared == 0:  # the first of the heads a key head serves
        at_q = i_head // shared * K + o_k
        at_k = KEY_HEADS * K + at_q
        q, q_in = _convolved_at(
            i_t, p_projected, p_ring, p_conv, position, stride, at_q, m_k, channels, KERNEL
        )
        k, k_in = _convolved_at(
            i_t, p_projected, p_ring, p_conv, position, stride, at_k, m_k, channels, KERNEL
        )
        tl.store(p_row + at_q, q_in, mask=m_k)
        tl.store(p_row + at_k, k_in, mask=m_k)
        q *= tl.rsqrt(tl.sum(q * q, axis=0) + 1e-6) * scale
        k *= tl.rsqrt(tl.sum(k * k, axis=0) + 1e-6)
        tl.store(p_queries + i_t * (KEY_HEADS * K) + at_q, q, mask=m_k)
        tl.store(p_keys + i_t * (KEY_HEADS * K) + at_q, k, mask=m_k)


@kernel(do_not_specialize=["tokens"])
def _verify_step(
    p_queries,  # as `_prepare` left them
    p_keys,
    p_values,
    p_gates,
    p_state,  # [HEADS, K, V] fp32
    p_errors,  # [T, HEADS, V] fp32
    p_total,  # [T, HEADS] fp32
    p_out,  # [T, HEADS, V]
    tokens,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """All tokens of BV value columns of one head."""
    i_v, i_head = tl.program_id(0), tl.program_id(1)
    o_k, o_v = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    at_state = (i_head * K + o_k[:, None]) * V + o_v[None, :]
    b_s = tl.load(p_state + at_state, mask=m_k[:, None] & m_v[None, :], other=0.0)
    at_key = i_head // (HEADS // KEY_HEADS) * K + o_k
    total = 0.0
    for i_t in range(tokens):
        at_keys, at_row = i_t * (KEY_HEADS * K) + at_key, i_t * (HEADS * V) + i_head * V + o_v
        b_k = tl.load(p_keys + at_keys, mask=m_k, other=0.0)[:, None]
        b_q = tl.load(p_queries + at_keys, mask=m_k, other=0.0)[:, None]
        b_v = tl.load(p_values + at_row, mask=m_v, other=0.0)
        g = tl.load(p_gates + i_t * (2 * HEADS) + i_head)
        beta = tl.load(p_gates + i_t * (2 * HEADS) + HEADS + i_head)
        b_s *= tl.exp(g)
        b_error = beta * (b_v - tl.sum(b_s * b_k, axis=0))
        b_s += b_k * b_error[None, :]
        b_out = tl.sum(b_s * b_q, axis=0)
        total += g
        tl.store(p_out + at_row, b_out, mask=m_v)
        tl.store(p_errors + at_row, b_error, mask=m_v)
        if i_v == 0:
            tl.store(p_total + i_t * HEADS + i_head, total)


@kernel()
def _commit(
    p_keys,  # [layers, ROWS, KEY_HEADS, K] fp32
    p_errors,  # [layers, ROWS, HEADS, V] fp32
    p_total,  # [layers, ROWS, HEADS] fp32
    p_tokens,  # [1] int32
    p_state,  # [layers, HEADS, K, V] fp32, in and out
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """BV value columns of one head of one layer."""
    i_v, i_head, i_layer = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    tokens = tl.load(p_tokens)
    o_k, o_v = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    m_state = m_k[:, None] & m_v[None, :]
    at_state = ((i_layer * HEADS + i_head) * K + o_k[:, None]) * V + o_v[None, :]
    b_s = tl.load(p_state + at_state, mask=m_state, other=0.0)
    first = i_layer * ROWS
    p_total += first * HEADS + i_head
    p_keys += first * (KEY_HEADS * K) + i_head // (HEADS // KEY_HEADS) * K + o_k
    p_errors += first * (HEADS * V) + i_head * V + o_v
    total_end = tl.load(p_total + (tokens - 1) * HEADS, mask=tokens > 0, other=0.0)
    b_s *= tl.exp(total_end)
    for i_t in range(tokens):
        b_k = tl.load(p_keys + i_t * (KEY_HEADS * K), mask=m_k, other=0.0)
        b_error = tl.load(p_errors + i_t * (HEADS * V), mask=m_v, other=0.0)
        b_error *= tl.exp(total_end - tl.load(p_total + i_t * HEADS))
        b_s += b_k[:, None] * b_error[None, :]
    tl.store(p_state + at_state, b_s, mask=m_state)


@kernel()
def _commit_inputs(
    p_inputs,  # [layers, ROWS, channels] fp32
    p_tokens,  # [1] int32
    p_position,  # [1] int64, of the first of them
    p_rings,  # [layers, KERNEL, channels] fp32, in and out
    channels,
    ROWS: tl.constexpr,
    KERNEL: tl.constexpr,
    BC: tl.constexpr,
):
    """BC channels of one layer: the last inputs take the places of the oldest."""
    i_layer = tl.program_id(1).to(tl.int64)
    tokens, position = tl.load(p_tokens), tl.load(p_position)
    o_c = tl.program_id(0) * BC + tl.arange(0, BC)
    for j in tl.static_range(KERNEL):
        i_t = tokens - KERNEL + j
        mask = (o_c < channels) & (o_c * 0 + i_t >= 0)
        b_in = tl.load(p_inputs + (i_layer * ROWS + i_t) * channels + o_c, mask=mask, other=0.0)
        row = (position + i_t + KERNEL) % KERNEL
        tl.store(p_rings + (i_layer * KERNEL + row) * channels + o_c, b_in, mask=mask)


def verify_step(
    projected: Tensor,
    *,
    weights: DeltaNetWeights,
    ring: Tensor,
    position: Tensor,
    recurrent: Tensor,
    drafts: Drafts,
) -> Tensor:
    """Read a few drafted tokens in three launches; see `drafts.verify_step`."""
    heads, key_dim, value_dim = recurrent.shape
    kernel, channels = weights.conv.shape
    tokens = len(projected)
    assert projected.shape == (tokens, channels + heads * value_dim + 2 * heads)
    assert channels == 2 * weights.key_heads * key_dim + heads * value_dim
    assert projected.stride(1) == 1
    assert ring.shape == weights.conv.shape
    assert position.dtype == torch.int64
    assert ring.dtype == recurrent.dtype == weights.conv.dtype == torch.float32
    for tensor in (ring, recurrent, weights.conv, *drafts.tensors):
        assert tensor.is_contiguous()
    for kept in drafts.tensors:
        assert len(kept) >= tokens
        assert kept.dtype == torch.float32
    queries = torch.empty_like(drafts.keys[:tokens])
    values = torch.empty_like(drafts.errors[:tokens])
    gates = queries.new_empty(tokens, 2, heads)
    sizes = {
        "HEADS": heads,
        "KEY_HEADS": weights.key_heads,
        "K": key_dim,
        "V": value_dim,
        "BK": next_power_of_2(key_dim),
    }
    _prepare[(tokens, heads)](
        projected,
        weights.conv,
        ring,
        position,
        weights.neg_a,
        weights.dt_bias,
        drafts.inputs,
        drafts.keys,
        queries,
        values,
        gates,
        projected.stride(0),
        key_dim**-0.5,
        KERNEL=kernel,
        BV=next_power_of_2(value_dim),
        num_warps=1,
        **sizes,
    )
    out = torch.empty_like(values)
    _verify_step[(cdiv(value_dim, VERIFIED_COLUMNS), heads)](
        queries,
        drafts.keys,
        values,
        gates,
        recurrent,
        drafts.errors,
        drafts.total,
        out,
        tokens,
        BV=VERIFIED_COLUMNS,
        num_warps=1,
        **sizes,
    )
    z = projected[:, channels : channels + heads * value_dim].unflatten(1, (heads, value_dim))
    out = gated_rms_norm(out, gate=z, scale=weights.norm, eps=weights.eps, dtype=projected.dtype)
    return out.flatten(1)


def commit(
    drafts: Drafts, tokens: Tensor, *, rings: Tensor, position: Tensor, recurrent: Tensor
) -> None:
    """Take the first tokens of all layers in; see `drafts.commit`."""
    layers, rows, heads, value_dim = drafts.errors.shape
    *_, key_heads, key_dim = drafts.keys.shape
    kernel, channels = rings.shape[1:]
    assert tokens.dtype == torch.int32
    assert position.dtype == torch.int64
    assert recurrent.shape == (layers, heads, key_dim, value_dim)
    assert drafts.inputs.shape == (layers, rows, channels)
    for tensor in (rings, recurrent, *drafts.tensors):
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
    if not layers:
        return
    _commit[(cdiv(value_dim, COMMITTED_COLUMNS), heads, layers)](
        drafts.keys,
        drafts.errors,
        drafts.total,
        tokens,
        recurrent,
        ROWS=rows,
        HEADS=heads,
        KEY_HEADS=key_heads,
        K=key_dim,
        V=value_dim,
        BK=next_power_of_2(key_dim),
        BV=COMMITTED_COLUMNS,
        num_warps=4,
    )
    _commit_inputs[(cdiv(channels, COMMITTED_CHANNELS), layers)](
        drafts.inputs,
        tokens,
        position,
        rings,
        channels,
        ROWS=rows,
        KERNEL=kernel,
        BC=COMMITTED_CHANNELS,
        num_warps=4,
    )
