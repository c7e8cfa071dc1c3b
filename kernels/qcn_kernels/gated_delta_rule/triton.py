"""The chunked gated delta rule on a GPU: one launch over all chunks, one from chunk to chunk.

`prepare` makes, for each chunk and head by itself, what does not depend on the state: the inverse T
of the chunk's triangular system, its columns scaled by β, its rows by the decay to the chunk's end;
and R, the decayed scores of the queries times T. `scan` then takes the chunks in order, the state S
of one head in registers, some value columns to a program:

    X = V − exp Γ ∘ (K S);   O = exp Γ ∘ (Q S) + R X;   S ← exp(Γ_C) S + Kᵀ (T X)

README.md says why. S never leaves fp32: its operand is a rounded copy.

A chunk is a tile of 64 rows whatever it holds, and a program's sums run in an order that depends on
nothing else. So the result is that of the chunk grid, bit for bit, however many chunks share a
launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import OPERAND, STORED_OPERAND, configuration, stages
from qcn_kernels.gated_delta_rule.chunked import CHUNK_SIZE
from qcn_kernels.gated_delta_rule.grid import ChunkGrid
from qcn_kernels.launch import cdiv, kernel, next_power_of_2

PREPARED_DIMS = 32  # of queries and keys at a time
# Warps, and registers of a thread where they are limited: four programs at once are 1.13 times as
# fast on an H200 as three.
PREPARE = {80: (4, None), 90: (4, 128), 120: (4, None)}
SCAN = {80: (16, 4, 3), 90: (32, 4, 3), 120: (16, 4, 3)}  # value columns, warps, stages


@triton.jit
def _substitute(p_a, C: tl.constexpr, B: tl.constexpr):
    """Replace the blocks of B rows on the diagonal of A, at p_a, by those of (I + A)⁻¹.

    A thread solves for one column of one block, all in its registers.
    """
    o_x = tl.arange(0, C)
    p_block, o_column = p_a + o_x // B * (B * C + B), o_x % B
    solved = (tl.where(o_column == 0, 1.0, 0.0),)
    for i in tl.static_range(1, B):
        b_x = tl.where(o_column == i, 1.0, 0.0)
        for j in tl.static_range(i):
            b_x -= tl.load(p_block + (i * C + j)) * solved[j]
        solved += (b_x,)  # type: ignore[assignment] # it grows as the loop is unrolled
    tl.debug_barrier()
    for i in tl.static_range(B):
        tl.store(p_block + i * C + o_column, solved[i])
    tl.debug_barrier()


@triton.jit
def _dot(a, b, OPERAND: tl.constexpr):
    """a b, each the sum of two operands: of 16 bits of mantissa, where one operand has 8."""
    a_high, b_high = a.to(OPERAND), b.to(OPERAND)
    a_low, b_low = (a - a_high.to(tl.float32)).to(OPERAND), (b - b_high.to(tl.float32)).to(OPERAND)
    return tl.dot(a_high, b_high, acc=tl.dot(a_high, b_low, acc=tl.dot(a_low, b_high)))


@triton.jit
def _join_pairs(p_a, C: tl.constexpr, B: tl.constexpr, OPERAND: tl.constexpr):
    """Make inverses of 2 B rows of those of B rows on the diagonal.

    The inverse of [[X, 0], [Y, Z]] is [[X⁻¹, 0], [−Z⁻¹ Y X⁻¹, Z⁻¹]].
    """
    o_b = tl.arange(0, B)
    for i_pair in tl.static_range(C // (2 * B)):
        p_x = p_a + i_pair * (2 * B * (C + 1)) + o_b[:, None] * C + o_b[None, :]
        p_y = p_x + B * C
        b_y = _dot(tl.load(p_y + B), tl.load(p_y), OPERAND)
        b_y = _dot(b_y, tl.load(p_x), OPERAND)
        tl.debug_barrier()
        tl.store(p_y, -b_y)
    tl.debug_barrier()


@kernel(do_not_specialize=["chunks"])
def _prepare(
    p_q,
    p_k,
    p_g,
    p_beta,
    p_starts,
    p_decays,  # [Hv, chunks, C] fp32: exp Γ
    p_solve,  # [Hv, chunks, 3, C, C] operands: exp(Γ_C − Γ) ∘ T β, what A took beside it, P T β
    chunks,
    stride_q,
    stride_k,
    stride_g,
    stride_beta,
    SHARED: tl.constexpr,  # value heads per key head
    K: tl.constexpr,
    BK: tl.constexpr,
    C: tl.constexpr,
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
    tl.store(p_decays + o_chunk * C + o_c, tl.exp(total))
    q_k = tl.zeros([C, C], dtype=tl.float32)
    k_k = tl.zeros([C, C], dtype=tl.float32)
    at_end = tl.min(total, axis=0)
    for first in range(0, K, BK):  # some dimensions at a time: an operand is held in registers
        o_k = first + tl.arange(0, BK)
        m_k = here[:, None] & (o_k < K)[None, :]
        at_k = (i_head // SHARED) * K + o_k[None, :]
        b_q = tl.load(p_q + o_t[:, None] * stride_q + at_k, mask=m_k, other=0.0)
        b_k = tl.load(p_k + o_t[:, None] * stride_k + at_k, mask=m_k, other=0.0)
        b_q, b_k = b_q.to(tl.float32).to(OPERAND), b_k.to(tl.float32).to(OPERAND)
        q_k = tl.dot(b_q, tl.trans(b_k), acc=q_k)
        k_k = tl.dot(b_k, tl.trans(b_k), acc=k_k)
    # Only differences ≤ 0 are exponentiated.
    row, column = o_c[:, None], o_c[None, :]
    decay = tl.exp(tl.where(row >= column, total[:, None] - total[None, :], float("-inf")))
    square = row * C + column
    p_solve += o_chunk * (3 * C * C)
    p_read = p_solve + 2 * C * C
    p_a = p_solve.to(tl.pointer_type(tl.float32))  # the place of the results holds A meanwhile
    tl.store(p_a + square, tl.where(row > column, k_k * decay * b_beta[:, None], 0.0))
    tl.store(p_read + square, (q_k * decay).to(OPERAND))
    tl.debug_barrier()
    _substitute(p_a, C, C // 4)
    _join_pairs(p_a, C, C // 4, OPERAND)
    _join_pairs(p_a, C, C // 2, OPERAND)
    solve = tl.load(p_a + square) * b_beta[None, :]
    read = tl.dot(tl.load(p_read + square), solve.to(OPERAND))
    tl.debug_barrier()
    tl.store(p_read + square, read.to(OPERAND))
    to_end = tl.exp(at_end - total)
    tl.store(p_solve + square, (solve * to_end[:, None]).to(OPERAND))


@kernel(do_not_specialize=["chunks"])
def _scan(
    p_q,
    p_k,
    p_v,
    p_starts,
    p_slots,
    p_decays,
    p_solve,
    p_state,  # [Hv, K, V] fp32, in and out
    p_checkpoints,  # [slots, Hv, K, V] fp32
    p_out,  # [T, Hv, V]
    chunks,
    STRIDE_Q: tl.constexpr,
    STRIDE_K: tl.constexpr,
    STRIDE_V: tl.constexpr,
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
    at_q = o_c[:, None] * STRIDE_Q + (i_head // SHARED) * K + o_k[None, :]
    at_k = o_c[:, None] * STRIDE_K + (i_head // SHARED) * K + o_k[None, :]
    at_v = o_c[:, None] * STRIDE_V + i_head * V + o_v[None, :]
    at_out = o_c[:, None] * (HEADS * V) + i_head * V + o_v[None, :]
    start, end = tl.load(p_starts), tl.load(p_starts + 1)
    for i_chunk in range(chunks):
        here = (o_c < end - start)[:, None]
        m_k, m_v = here & (o_k < K)[None, :], here & (o_v < V)[None, :]
        first = start.to(tl.int64)
        b_k = tl.load(p_k + first * STRIDE_K + at_k, mask=m_k, other=0.0)
        b_q = tl.load(p_q + first * STRIDE_Q + at_q, mask=m_k, other=0.0)
        b_v = tl.load(p_v + first * STRIDE_V + at_v, mask=m_v, other=0.0)
        o_chunk = (i_head * chunks + i_chunk).to(tl.int64)
        p_decay = p_decays + o_chunk * C
        from_start = tl.load(p_decay + o_c)[:, None]
        whole = tl.load(p_decay + C - 1)  # rows behind the end decay by nothing
        p_t = p_solve + o_chunk * (3 * C * C)
        b_t, b_r = tl.load(p_t + square), tl.load(p_t + 2 * C * C + square)
        b_k, b_q = b_k.to(tl.float32).to(OPERAND), b_q.to(tl.float32).to(OPERAND)
        b_state = b_s.to(OPERAND)
        b_x = (b_v.to(tl.float32) - from_start * tl.dot(b_k, b_state)).to(OPERAND)
        b_o = from_start * tl.dot(b_q, b_state)
        b_d = tl.dot(b_t, b_x)
        b_s = tl.dot(tl.trans(b_k), b_d.to(OPERAND), acc=b_s * whole)
        b_o = tl.dot(b_r, b_x, acc=b_o)
        p_first = p_out + first * (HEADS * V)
        tl.store(p_first + at_out, b_o.to(p_out.dtype.element_ty), mask=m_v)
        slot = tl.load(p_slots + i_chunk)
        if slot >= 0:
            p_slot = p_checkpoints + slot.to(tl.int64) * HEADS * K * V
            tl.store(p_slot + at_state, b_s, mask=m_state)
        # Both of the next chunk, so that its loads wait for nothing of this round.
        start = tl.load(p_starts + i_chunk + 1)
        end = tl.load(p_starts + tl.minimum(i_chunk + 2, chunks))
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
    block_v, warps, most_stages = configuration(SCAN, v)
    prepare_warps, registers = configuration(PREPARE, v)
    block_k = max(16, next_power_of_2(key_dim))
    shared, chunks = heads // key_heads, grid.chunks
    decays = v.new_empty(heads, chunks, CHUNK_SIZE, dtype=torch.float32)
    solve = v.new_empty(heads, chunks, 3, CHUNK_SIZE, CHUNK_SIZE, dtype=STORED_OPERAND)
    out = v.new_empty(tokens, heads, value_dim)
    _prepare[(chunks, heads)](
        q,
        k,
        g,
        beta,
        grid.starts,
        decays,
        solve,
        chunks,
        q.stride(0),
        k.stride(0),
        g.stride(0),
        beta.stride(0),
        SHARED=shared,
        K=key_dim,
        BK=PREPARED_DIMS,
        C=CHUNK_SIZE,
        OPERAND=OPERAND,
        num_warps=prepare_warps,
        maxnreg=registers,
        num_stages=1,
    )
    _scan[(cdiv(value_dim, block_v), heads)](
        q,
        k,
        v,
        grid.starts,
        grid.slots,
        decays,
        solve,
        state,
        checkpoints,
        out,
        chunks,
        STRIDE_Q=q.stride(0),
        STRIDE_K=k.stride(0),
        STRIDE_V=v.stride(0),
        HEADS=heads,
        SHARED=shared,
        K=key_dim,
        V=value_dim,
        BK=block_k,
        BV=block_v,
        C=CHUNK_SIZE,
        OPERAND=OPERAND,
        num_warps=warps,
        num_stages=stages(most_stages, v),
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
    assert v.shape[0] == tokens
    assert g.shape == beta.shape == (tokens, heads)
    assert g.dtype == beta.dtype == state.dtype == checkpoints.dtype == torch.float32
    assert q.stride()[1:] == k.stride()[1:] == (key_dim, 1)
    assert v.stride()[1:] == (value_dim, 1)
    assert g.stride(1) == beta.stride(1) == 1
    assert state.shape == checkpoints.shape[1:] == (heads, key_dim, value_dim)
    assert state.is_contiguous()
    assert checkpoints.is_contiguous()
    assert grid.starts.shape[0] == grid.chunks + 1
