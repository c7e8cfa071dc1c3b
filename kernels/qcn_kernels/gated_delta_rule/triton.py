"""The chunked gated delta rule on a GPU: one launch over all chunks, one from chunk to chunk.

`prepare` makes, for each chunk and head by itself, what does not depend on the state: the inverse T
of the chunk's triangular system, its columns scaled by β, and the decayed scores P of its queries.
`scan` then takes the chunks in order, the state S of one head in registers, some value columns to a
program:

    Δ = T (V − exp Γ ∘ (K S));   O = exp Γ ∘ (Q S) + P Δ;   S ← exp(Γ_C) S + Kᵀ (exp(Γ_C − Γ) ∘ Δ)

This is the WY form of README.md with T kept whole instead of T V and T K: the error is formed
before it is solved for, which rounds less, and T and P are 16 KB a chunk where T V, T K and P would
be 40. S never leaves fp32: its operand is a rounded copy.

A chunk is a tile of 64 rows whatever it holds, and a program's sums run in an order that depends on
nothing else. So the result is that of the chunk grid, bit for bit, however many chunks share a
launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import OPERAND, STORED_OPERAND, configuration
from qcn_kernels.gated_delta_rule.chunked import CHUNK_SIZE
from qcn_kernels.gated_delta_rule.grid import ChunkGrid

SOLVE_PRECISION = "ieee"  # 80k multiplications a chunk: too few to be worth tensor cores' registers

# Chosen without hardware: the fewest warps that spill nothing, and loads as far ahead as fits.
PREPARED_DIMS = 32  # of queries and keys at a time
PREPARE = {80: 8, 90: 4, 120: 8}  # warps
SCAN = {80: (16, 4, 3), 90: (32, 4, 3), 120: (16, 4, 3)}  # value columns, warps, stages


@triton.jit
def _unit_lower_inverse(a, C: tl.constexpr, PRECISION: tl.constexpr):
    """(I + a)⁻¹ for a strictly lower triangular a [C, C] fp32.

    Four blocks on the diagonal by substitution, all at once, then put together by twos. (The
    doubling series (I − a)(I + a²)(I + a⁴)… would be fewer steps, but its powers grow beyond what
    fp32 can cancel where neighbouring keys are alike.)
    """
    B: tl.constexpr = C // 4
    i_block, i_row = tl.arange(0, 4), tl.arange(0, B)
    diagonal = i_block[:, None, None, None] == i_block[None, None, :, None]
    b_x = -tl.sum(tl.where(diagonal, tl.reshape(a, [4, B, 4, B]), 0.0), axis=2)  # [4, B, B]
    for i in range(1, B):
        this = (i_row == i)[None, :, None]
        row = tl.sum(tl.where(this, b_x, 0.0), axis=1)  # [4, B]; zero from column i on
        row += tl.sum(row[:, :, None] * b_x, axis=1)
        b_x = tl.where(this, row[:, None, :], b_x)
    b_x += tl.where(i_row[:, None] == i_row[None, :], 1.0, 0.0)[None, :, :]
    b_x = _join_pairs(b_x, a, C, 2, B, PRECISION)
    b_x = _join_pairs(b_x, a, C, 1, 2 * B, PRECISION)
    return tl.reshape(b_x, [C, C])


@triton.jit
def _join_pairs(b_x, a, C: tl.constexpr, N: tl.constexpr, B: tl.constexpr, PRECISION: tl.constexpr):
    """Inverses of N blocks of 2 B rows on the diagonal from those of 2 N blocks, [2 N, B, B].

    The inverse of [[X, 0], [Y, Z]] is [[X⁻¹, 0], [−Z⁻¹ Y X⁻¹, Z⁻¹]].
    """
    i_block, i_half = tl.arange(0, 2 * N), tl.arange(0, 2)
    first = (i_half == 0)[None, :, None, None]
    left = i_block[:, None, None, None] == i_block[None, None, :, None] + 1
    b_y = tl.sum(tl.where(left, tl.reshape(a, [2 * N, B, 2 * N, B]), 0.0), axis=2)
    b_y = tl.sum(tl.where(first, 0.0, tl.reshape(b_y, [N, 2, B, B])), axis=1)
    pairs = tl.reshape(b_x, [N, 2, B, B])
    x, z = tl.sum(tl.where(first, pairs, 0.0), axis=1), tl.sum(tl.where(first, 0.0, pairs), axis=1)
    b_y = tl.dot(tl.dot(z, b_y, input_precision=PRECISION), x, input_precision=PRECISION)
    row, column = i_half[None, :, None, None, None], i_half[None, None, None, :, None]
    below = tl.where(row > column, -b_y[:, None, :, None, :], 0.0)
    b_x = tl.where(row == column, pairs[:, :, :, None, :], below)
    return tl.reshape(b_x, [N, 2 * B, 2 * B])


@triton.jit(do_not_specialize=["chunks"])
def _prepare(
    p_q,
    p_k,
    p_g,
    p_beta,
    p_starts,
    p_total,  # [Hv, chunks, C] fp32: Γ
    p_solve,  # [Hv, chunks, C, C] operands: T, columns scaled by β
    p_scores,  # [Hv, chunks, C, C] operands: P
    chunks,
    stride_q,
    stride_k,
    stride_g,
    stride_beta,
    SHARED: tl.constexpr,  # value heads per key head
    K: tl.constexpr,
    BK: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """One chunk of one head."""
    i_chunk, i_head = tl.program_id(0), tl.program_id(1)
    start, end = tl.load(p_starts + i_chunk), tl.load(p_starts + i_chunk + 1)
    o_c = tl.arange(0, C)
    o_t = (start + o_c).to(tl.int64)
    here = o_t < end
    b_g = tl.load(p_g + o_t * stride_g + i_head, mask=here, other=0.0)
    b_beta = tl.load(p_beta + o_t * stride_beta + i_head, mask=here, other=0.0)
    o_chunk = (i_head * chunks + i_chunk).to(tl.int64)
    total = tl.cumsum(b_g, axis=0)
    tl.store(p_total + o_chunk * C + o_c, total)
    # Only differences ≤ 0 are exponentiated.
    row, column = o_c[:, None], o_c[None, :]
    decay = tl.exp(tl.where(row >= column, total[:, None] - total[None, :], float("-inf")))

    q_k = tl.zeros([C, C], dtype=tl.float32)
    k_k = tl.zeros([C, C], dtype=tl.float32)
    for first in range(0, K, BK):  # some dimensions at a time: an operand is held in registers
        o_k = first + tl.arange(0, BK)
        m_k = here[:, None] & (o_k < K)[None, :]
        at_k = (i_head // SHARED) * K + o_k[None, :]
        b_q = tl.load(p_q + o_t[:, None] * stride_q + at_k, mask=m_k, other=0.0)
        b_k = tl.load(p_k + o_t[:, None] * stride_k + at_k, mask=m_k, other=0.0)
        b_q, b_k = b_q.to(tl.float32).to(OPERAND), b_k.to(tl.float32).to(OPERAND)
        q_k += tl.dot(b_q, tl.trans(b_k))
        k_k += tl.dot(b_k, tl.trans(b_k))
    square = o_chunk * C * C + row * C + column
    tl.store(p_scores + square, (q_k * decay).to(OPERAND))
    system = k_k * decay * b_beta[:, None]
    solve = _unit_lower_inverse(tl.where(row > column, system, 0.0), C, PRECISION)
    tl.store(p_solve + square, (solve * b_beta[None, :]).to(OPERAND))


@triton.jit(do_not_specialize=["chunks"])
def _scan(
    p_q,
    p_k,
    p_v,
    p_starts,
    p_slots,
    p_total,
    p_solve,
    p_scores,
    p_state,  # [Hv, K, V] fp32, in and out
    p_checkpoints,  # [slots, Hv, K, V] fp32
    p_out,  # [T, Hv, V]
    chunks,
    stride_q,
    stride_k,
    stride_v,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """All chunks of BV value columns of one head."""
    i_v, i_head = tl.program_id(0), tl.program_id(1)
    o_c, o_k, o_v = tl.arange(0, C), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    square = o_c[:, None] * C + o_c[None, :]
    m_state = (o_k < K)[:, None] & (o_v < V)[None, :]
    at_state = (i_head * K + o_k[:, None]) * V + o_v[None, :]
    b_s = tl.load(p_state + at_state, mask=m_state, other=0.0)
    at_k = (i_head // SHARED) * K + o_k[None, :]
    at_v = i_head * V + o_v[None, :]
    for i_chunk in range(chunks):
        start, end = tl.load(p_starts + i_chunk), tl.load(p_starts + i_chunk + 1)
        o_t = (start + o_c).to(tl.int64)[:, None]
        m_k = (o_t < end) & (o_k < K)[None, :]
        m_v = (o_t < end) & (o_v < V)[None, :]
        b_k = tl.load(p_k + o_t * stride_k + at_k, mask=m_k, other=0.0)
        b_q = tl.load(p_q + o_t * stride_q + at_k, mask=m_k, other=0.0)
        b_v = tl.load(p_v + o_t * stride_v + at_v, mask=m_v, other=0.0)
        o_chunk = (i_head * chunks + i_chunk).to(tl.int64)
        total = tl.load(p_total + o_chunk * C + o_c)
        total_end = tl.load(p_total + o_chunk * C + C - 1)  # rows behind the end decay by nothing
        b_t = tl.load(p_solve + o_chunk * C * C + square)
        b_p = tl.load(p_scores + o_chunk * C * C + square)
        b_k, b_q = b_k.to(tl.float32).to(OPERAND), b_q.to(tl.float32).to(OPERAND)
        from_start = tl.exp(total)[:, None]
        b_read = b_s.to(OPERAND)
        b_x = b_v.to(tl.float32) - from_start * tl.dot(b_k, b_read)
        b_d = tl.dot(b_t, b_x.to(OPERAND))
        b_o = from_start * tl.dot(b_q, b_read) + tl.dot(b_p, b_d.to(OPERAND))
        tl.store(p_out + (o_t * HEADS * V + at_v), b_o.to(p_out.dtype.element_ty), mask=m_v)
        b_d *= tl.exp(total_end - total)[:, None]
        b_s = b_s * tl.exp(total_end) + tl.dot(tl.trans(b_k), b_d.to(OPERAND))
        slot = tl.load(p_slots + i_chunk)
        if slot >= 0:
            p_slot = p_checkpoints + slot.to(tl.int64) * HEADS * K * V
            tl.store(p_slot + at_state, b_s, mask=m_state)
    tl.store(p_state + at_state, b_s, mask=m_state)


def chunk_gated_delta_rule(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    grid: ChunkGrid,
    checkpoints: Tensor,
) -> Tensor:
    """Read T tokens into `state`, chunk by chunk; return what each reads out.

    Args:
        q, k: [T, key_heads, key_dim], l2-normalised, q scaled; bf16 or fp32. A token's heads lie
            together; tokens may lie apart.
        v: [T, value_heads, value_dim], likewise.
        g, beta: [T, value_heads] fp32.
        state: [value_heads, key_dim, value_dim] fp32, updated in place.
        grid: of the T tokens, on their device.
        checkpoints: [slots, value_heads, key_dim, value_dim] fp32, written where the grid says.

    Returns:
        [T, value_heads, value_dim] in v's dtype.
    """
    tokens, key_heads, key_dim = k.shape
    _, heads, value_dim = v.shape
    _check(q=q, k=k, v=v, g=g, beta=beta, state=state, grid=grid, checkpoints=checkpoints)
    block_v, warps, stages = configuration(SCAN, v)
    block_k = max(16, triton.next_power_of_2(key_dim))
    shared, chunks = heads // key_heads, grid.chunks
    total = v.new_empty(heads, chunks, CHUNK_SIZE, dtype=torch.float32)
    solve = v.new_empty(heads, chunks, CHUNK_SIZE, CHUNK_SIZE, dtype=STORED_OPERAND)
    scores = torch.empty_like(solve)
    out = v.new_empty(tokens, heads, value_dim)
    _prepare[(chunks, heads)](
        q,
        k,
        g,
        beta,
        grid.starts,
        total,
        solve,
        scores,
        chunks,
        q.stride(0),
        k.stride(0),
        g.stride(0),
        beta.stride(0),
        SHARED=shared,
        K=key_dim,
        BK=PREPARED_DIMS,
        C=CHUNK_SIZE,
        PRECISION=SOLVE_PRECISION,
        OPERAND=OPERAND,
        num_warps=configuration(PREPARE, v),
        num_stages=1,
    )
    _scan[(triton.cdiv(value_dim, block_v), heads)](
        q,
        k,
        v,
        grid.starts,
        grid.slots,
        total,
        solve,
        scores,
        state,
        checkpoints,
        out,
        chunks,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        HEADS=heads,
        SHARED=shared,
        K=key_dim,
        V=value_dim,
        BK=block_k,
        BV=block_v,
        C=CHUNK_SIZE,
        OPERAND=OPERAND,
        num_warps=warps,
        num_stages=stages,
    )
    return out


def _check(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    grid: ChunkGrid,
    checkpoints: Tensor,
) -> None:
    """Assert what the kernels take for granted. ValueError: sizes that are read amiss on a GPU."""
    tokens, key_heads, key_dim = k.shape
    _, heads, value_dim = v.shape
    if k.is_cuda and k.element_size() < 4 and (key_dim % 2 or value_dim % 2):
        raise ValueError(  # seen with Triton 3.6 and 33 dimensions: up to an illegal access
            f"heads of {key_dim} and {value_dim} dimensions in {k.dtype}: of an odd number no GPU"
            ' reads them right. Set "qcn.engine.device" to "cpu".'
        )
    assert q.shape == k.shape
    assert heads % key_heads == 0
    assert len(v) == tokens
    assert g.shape == beta.shape == (tokens, heads)
    assert g.dtype == beta.dtype == state.dtype == checkpoints.dtype == torch.float32
    assert q.stride()[1:] == k.stride()[1:] == (key_dim, 1)
    assert v.stride()[1:] == (value_dim, 1)
    assert g.stride(1) == beta.stride(1) == 1
    assert state.shape == checkpoints.shape[1:] == (heads, key_dim, value_dim)
    assert state.is_contiguous()
    assert checkpoints.is_contiguous()
    assert len(grid.starts) == grid.chunks + 1
