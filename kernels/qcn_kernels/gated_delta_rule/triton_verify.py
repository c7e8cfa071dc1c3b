"""Drafted tokens on a GPU: one launch finds what each would change, one takes the first ones in.

A program holds some value columns of one head's state in registers. To verify it reads the tokens
one after the other, as decode does, and writes out the error each corrects instead of the state. To
commit it adds their keys times their errors to the state as it still is. How many is read from the
device, so that whoever accepted them need not tell the host first. All sums are in fp32, in an
order that does not depend on the number of tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import configuration

# Chosen without hardware: programs enough for all multiprocessors at 32 heads of 128, 32 registers
# of state to a thread.
VERIFY = {80: (32, 4)}  # value columns, warps


@triton.jit(do_not_specialize=["tokens"])
def _verify(
    p_q,
    p_k,
    p_v,
    p_g,
    p_beta,
    p_state,  # [HEADS, K, V] fp32
    p_out,  # [T, HEADS, V]
    p_errors,  # [T, HEADS, V] fp32
    p_total,  # [T, HEADS] fp32
    tokens,
    stride_q,
    stride_k,
    stride_v,
    stride_g,
    stride_beta,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,  # value heads per key head
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
    at_k, at_v = (i_head // SHARED) * K + o_k, i_head * V + o_v
    total = 0.0
    for i_t in range(tokens):
        b_k = tl.load(p_k + i_t * stride_k + at_k, mask=m_k, other=0.0).to(tl.float32)[:, None]
        b_q = tl.load(p_q + i_t * stride_q + at_k, mask=m_k, other=0.0).to(tl.float32)[:, None]
        b_v = tl.load(p_v + i_t * stride_v + at_v, mask=m_v, other=0.0).to(tl.float32)
        g = tl.load(p_g + i_t * stride_g + i_head)
        beta = tl.load(p_beta + i_t * stride_beta + i_head)
        b_s *= tl.exp(g)
        b_error = beta * (b_v - tl.sum(b_s * b_k, axis=0))
        b_s += b_k * b_error[None, :]
        b_out = tl.sum(b_s * b_q, axis=0)
        at = i_t * HEADS * V + at_v
        tl.store(p_errors + at, b_error, mask=m_v)
        tl.store(p_out + at, b_out.to(p_out.dtype.element_ty), mask=m_v)
        total += g
        if i_v == 0:
            tl.store(p_total + i_t * HEADS + i_head, total)


@triton.jit
def _commit(
    p_k,
    p_errors,
    p_total,
    p_tokens,  # [1] int32
    p_state,  # [HEADS, K, V] fp32, in and out
    stride_k,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """BV value columns of one head."""
    i_v, i_head = tl.program_id(0), tl.program_id(1)
    tokens = tl.load(p_tokens)
    o_k, o_v = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    m_state = m_k[:, None] & m_v[None, :]
    at_state = (i_head * K + o_k[:, None]) * V + o_v[None, :]
    at_k, at_v = (i_head // SHARED) * K + o_k, i_head * V + o_v
    b_s = tl.load(p_state + at_state, mask=m_state, other=0.0)
    total_end = tl.load(p_total + (tokens - 1) * HEADS + i_head, mask=tokens > 0, other=0.0)
    b_s *= tl.exp(total_end)
    for i_t in range(tokens):
        b_k = tl.load(p_k + i_t * stride_k + at_k, mask=m_k, other=0.0).to(tl.float32)
        b_error = tl.load(p_errors + i_t * HEADS * V + at_v, mask=m_v, other=0.0)
        total = tl.load(p_total + i_t * HEADS + i_head)
        b_s += b_k[:, None] * (b_error * tl.exp(total_end - total))[None, :]
    tl.store(p_state + at_state, b_s, mask=m_state)


def verify_gated_delta_rule(
    *, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Read T tokens without writing the state.

    Args:
        q, k: [T, key_heads, key_dim], l2-normalised, q scaled; bf16 or fp32. A token's heads lie
            together; tokens may lie apart.
        v: [T, value_heads, value_dim], likewise.
        g, beta: [T, value_heads] fp32.
        state: [value_heads, key_dim, value_dim] fp32.

    Returns:
        What each reads out, [T, value_heads, value_dim] in v's dtype; the errors they correct, of
        the same shape, fp32; and the logarithm of the decay up to each, [T, value_heads] fp32.
    """
    tokens, key_heads, key_dim = k.shape
    _, heads, value_dim = v.shape
    assert q.shape == k.shape
    assert heads % key_heads == 0
    assert len(v) == tokens
    assert g.shape == beta.shape == (tokens, heads)
    assert g.dtype == beta.dtype == torch.float32
    assert q.stride()[1:] == k.stride()[1:] == (key_dim, 1)
    assert v.stride()[1:] == (value_dim, 1)
    assert g.stride(1) == beta.stride(1) == 1
    _check_state(state, heads, key_dim, value_dim)
    block_v, warps = configuration(VERIFY, v)
    out = v.new_empty(tokens, heads, value_dim)
    errors = torch.empty_like(out, dtype=torch.float32)
    total = v.new_empty(tokens, heads, dtype=torch.float32)
    _verify[(triton.cdiv(value_dim, block_v), heads)](
        q,
        k,
        v,
        g,
        beta,
        state,
        out,
        errors,
        total,
        tokens,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        g.stride(0),
        beta.stride(0),
        HEADS=heads,
        SHARED=heads // key_heads,
        K=key_dim,
        V=value_dim,
        BK=triton.next_power_of_2(key_dim),
        BV=block_v,
        num_warps=warps,
        num_stages=1,
    )
    return out, errors, total


def commit_gated_delta_rule(
    *, k: Tensor, errors: Tensor, total: Tensor, tokens: Tensor, state: Tensor
) -> None:
    """Read the first tokens of those verified into the state that they were verified on.

    Args:
        k: as it was verified.
        errors, total: as `verify_gated_delta_rule` returned them.
        tokens: [1] int32, how many; at most T.
        state: [value_heads, key_dim, value_dim] fp32, updated in place.
    """
    _, key_heads, key_dim = k.shape
    _, heads, value_dim = errors.shape
    assert k.stride()[1:] == (key_dim, 1)
    assert errors.is_contiguous()
    assert total.is_contiguous()
    assert errors.dtype == total.dtype == torch.float32
    assert tokens.dtype == torch.int32
    _check_state(state, heads, key_dim, value_dim)
    block_v, warps = configuration(VERIFY, errors)
    _commit[(triton.cdiv(value_dim, block_v), heads)](
        k,
        errors,
        total,
        tokens,
        state,
        k.stride(0),
        HEADS=heads,
        SHARED=heads // key_heads,
        K=key_dim,
        V=value_dim,
        BK=triton.next_power_of_2(key_dim),
        BV=block_v,
        num_warps=warps,
        num_stages=1,
    )


def _check_state(state: Tensor, heads: int, key_dim: int, value_dim: int) -> None:
    assert state.shape == (heads, key_dim, value_dim)
    assert state.dtype == torch.float32
    assert state.is_contiguous()
