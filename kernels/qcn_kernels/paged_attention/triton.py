"""Attention over a KV cache in pages on a GPU, the keys split at fixed places.

A tile holds some tokens and all the query heads that share a key head, so that a key is read once
for all of them. Its keys are cut into splits of a fixed size: each is a program of its own, which
leaves its part of the output and the logarithm of its weight, and a second launch adds the parts
up. So few tokens before a long cache still fill the GPU; and since the cuts are at positions,
neither the number of tokens in a launch nor the size of the cache has a say in a token's result.
Decode's splits are short, prefill's long: they agree to rounding.

From a 90 on, pages are read through a descriptor, by hardware that computes no addresses in
registers: those are what a tile is short of.

Of pages of e4m3 the values are operands as they are; a key's scale multiplies its scores, a value's
its weights. Each has its own, so what shares a launch has no say in it here either.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from qcn_kernels import chip
from qcn_kernels.chip import OPERAND, configuration, stages
from qcn_kernels.launch import cdiv, kernel, next_power_of_2
from qcn_kernels.matrices.triton import LARGEST, MULTIPLIES_E4M3, SMALLEST, e4m3, e4m3_bytes
from qcn_kernels.overlap.triton import await_previous, let_next_begin, overlapping
from qcn_kernels.paged_attention.pages import E4M3_ROWS, PagedKv, row_elements, scale_at


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows are query heads of tokens; keys are read some at a time."""

    rows: int
    keys: int  # divides a page
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Sum:
    """Parts that a program adds up at once, and elements of a head that it takes."""

    parts: int
    elements: int
    warps: int


# Measured on a 90; elsewhere the largest that spill nothing and fit.
DECODE = {
    80: Tile(16, 64, 4, 3),
    86: Tile(16, 32, 4, 3),
    90: Tile(16, 64, 4, 2),
    120: Tile(16, 32, 4, 3),
}
VERIFY = {80: Tile(64, 32, 8, 2)}  # behind a long text it reads keys once for 8 tokens
VERIFIED = 3  # tokens from which on: two of 8 query heads for each key head fill decode's tile
PREFILL = {80: Tile(64, 32, 8, 2), 90: Tile(128, 64, 8, 2), 120: Tile(64, 32, 8, 2)}
PREFILL_E4M3 = PREFILL | {90: Tile(128, 64, 8, 3)}

DECODE_SPLIT = 256  # keys: at 8,192 tokens 2 key heads make 64 programs
PREFILL_SPLIT = 16_384
PARTS_BYTES = 128 << 20
"""Memory for the parts of a prefill launch: more tokens take several. Tokens that are verified
together have one launch, in which they read keys together: 16 before 262,144 keys leave 256 MiB."""
DECODE_SUM = Sum(256, 32, 8)  # many parts,
PREFILL_SUM = Sum(4, 256, 2)  # or many tokens
DESCRIBED = 90
"""Compute capability from which pages are read through a descriptor."""
APPENDED = 4096  # elements of a program that writes to pages


@triton.jit
def _rows_of_pages(
    pages,
    row,
    D: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    ROW: tl.constexpr,
    FORMAT: tl.constexpr,
    DESCRIBED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """BN keys or values [BN, BD] of one page and head, of which `row` is the first."""
    if DESCRIBED:
        rows = pages.load([row, 0])
    else:
        o_d = tl.arange(0, BD)[None, :]
        o_n = tl.arange(0, BN)[:, None]
        NOTHING: tl.constexpr = 0 if FORMAT == "bytes" else 0.0
        p_rows = pages + row.to(tl.int64) * ROW + o_n * ROW + o_d
        rows = tl.load(p_rows, mask=o_d < D, other=NOTHING)
    if FORMAT != "plain":
        return e4m3(rows, FORMAT).to(OPERAND)
    return rows.to(tl.float32).to(OPERAND)


@triton.jit
def _scales_of_rows(
    p_scales,  # [rows, ROW / 4] fp32, the first row's scale in front
    row,
    there,  # [BN], which of them hold one
    BN: tl.constexpr,
    ROW: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """What BN keys or values of one page and head are multiplied by, 0 where there is none."""
    o_n = tl.arange(0, BN) * (ROW // 4)
    b = tl.load(p_scales + row.to(tl.int64) * (ROW // 4) + o_n, mask=there, other=0.0)
    return b * 256.0 if FORMAT == "bytes" else b


@triton.jit
def _attend_keys(
    acc,
    peak,
    total,
    b_q,
    position,
    last,
    start,
    end,
    k_pages,
    v_pages,
    p_k_scales,
    p_v_scales,
    p_table,
    i_kv,
    scale,
    KV: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    ROW: tl.constexpr,
    FORMAT: tl.constexpr,
    STAGES: tl.constexpr,
    MASKED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Take the keys from start to end into a running softmax; masked where some are later."""
    o_n = tl.arange(0, BN)
    page = tl.load(p_table + tl.minimum(start, last) // PAGE)
    for at in tl.range(start, end, BN, num_stages=STAGES):
        row = (page * KV + i_kv) * PAGE + at % PAGE
        page = tl.load(p_table + tl.minimum(at + BN, last) // PAGE)  # ahead of who waits for it
        b_k = _rows_of_pages(k_pages, row, D, BN, BD, ROW, FORMAT, DESCRIBED, OPERAND)
        # Where a tile begins decides which keys are masked in it, and must decide nothing else. So
        # scores are scaled and their peak subtracted by one instruction in either case: left to the
        # compiler, it is one where nothing is masked and two, which round twice, where a key is.
        scores = tl.dot(b_q, tl.trans(b_k))
        there = at + o_n <= last
        if FORMAT != "plain":
            scores *= _scales_of_rows(p_k_scales, row, there, BN, ROW, FORMAT)[None, :]
        if MASKED:
            scores = tl.where((at + o_n)[None, :] <= position[:, None], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1) * scale)
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # nothing seen yet
        b_scale = tl.full(scores.shape, 1.0, tl.float32) * scale
        weight = tl.exp2(tl.fma(scores, b_scale, tl.broadcast_to(-base[:, None], scores.shape)))
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weight, axis=1)
        b_v = _rows_of_pages(v_pages, row, D, BN, BD, ROW, FORMAT, DESCRIBED, OPERAND)
        if MASKED:  # behind the last key a page may hold NaN, and its weight of 0 does not help
            b_v = tl.where(there[:, None], b_v, 0.0)
        if FORMAT != "plain":
            weight *= _scales_of_rows(p_v_scales, row, there, BN, ROW, FORMAT)[None, :]
        acc = acc * shrink[:, None] + tl.dot(weight.to(OPERAND), b_v)
        peak = new_peak
    return acc, peak, total


@kernel(do_not_specialize=["tokens", "first", "slab"])
def _attend(
    p_q,  # [T, H, D]
    k_pages,  # [pages, KV, PAGE, ROW], as [pages · KV · PAGE, D] where described
    v_pages,
    p_k_scales,  # the same memory, where it is e4m3: the first row's scale
    p_v_scales,
    p_table,  # [n] int32
    p_length,  # [1] int32
    p_out,  # [T, H, D], where one split has all keys
    p_parts,  # else [splits, slab, H, D] fp32
    p_weights,  # [splits, slab, H] fp32: log2 of the sum of 2^scores
    tokens,  # T
    first,  # token of the slab's first row
    slab,  # a multiple of BT, or all tokens
    stride_q_t,
    stride_q_h,
    scale,  # of scores in units of log2
    SHARED: tl.constexpr,  # query heads per key head
    KV: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,
    WHOLE: tl.constexpr,  # whether one split has all keys
    BT: tl.constexpr,
    BS: tl.constexpr,  # SHARED, padded
    BN: tl.constexpr,
    BD: tl.constexpr,
    ROW: tl.constexpr,  # elements of a key in a page
    FORMAT: tl.constexpr,
    STAGES: tl.constexpr,
    DESCRIBED: tl.constexpr,
    OPERAND: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """One split of the keys of one key head, for BT tokens; those with most keys come first."""
    let_next_begin(OVERLAPS)
    await_previous(OVERLAPS)
    i_tile = tl.num_programs(0) - 1 - tl.program_id(0)
    i_kv, i_split = tl.program_id(1), tl.program_id(2)
    o_row = tl.arange(0, BT * BS)
    o_in_slab, o_shared = i_tile * BT + o_row // BS, o_row % BS
    o_t = first + o_in_slab
    here = (o_t < tokens) & (o_shared < SHARED)
    before = tl.load(p_length) - tokens  # keys in front of token 0
    last = before + tl.minimum(first + i_tile * BT + BT, tokens) - 1  # of the tile
    start, end = i_split * SPLIT, tl.minimum(i_split * SPLIT + SPLIT, last + 1)
    if start < end:
        o_d = tl.arange(0, BD)
        m_d = (o_d < D)[None, :]
        o_h = i_kv * SHARED + o_shared
        o_q = o_t.to(tl.int64)[:, None] * stride_q_t + o_h[:, None] * stride_q_h + o_d[None, :]
        b_q = tl.load(p_q + o_q, mask=here[:, None] & m_d, other=0.0).to(tl.float32).to(OPERAND)
        position = tl.where(here, before + o_t, -1)
        acc = tl.zeros([BT * BS, BD], dtype=tl.float32)
        peak = tl.full([BT * BS], float("-inf"), dtype=tl.float32)
        total = tl.zeros([BT * BS], dtype=tl.float32)
        # Every row sees what lies in front of the tile.
        seen = tl.minimum(tl.maximum(before + first + i_tile * BT + 1, start) // BN * BN, end)
        seen = tl.maximum(seen, start)
        acc, peak, total = _attend_keys(
            acc,
            peak,
            total,
            b_q,
            position,
            last,
            start,
            seen,
            k_pages,
            v_pages,
            p_k_scales,
            p_v_scales,
            p_table,
            i_kv,
            scale,
            KV,
            D,
            PAGE,
            BN,
            BD,
            ROW,
            FORMAT,
            STAGES,
            False,
            DESCRIBED,
            OPERAND,
        )
        acc, peak, total = _attend_keys(
            acc,
            peak,
            total,
            b_q,
            position,
            last,
            seen,
            end,
            k_pages,
            v_pages,
            p_k_scales,
            p_v_scales,
            p_table,
            i_kv,
            scale,
            KV,
            D,
            PAGE,
            BN,
            BD,
            ROW,
            FORMAT,
            1,
            True,
            DESCRIBED,
            OPERAND,
        )
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        # Rows are counted anew, from a 0 the compiler does not know: it would else keep through the
        # loops, in registers they are short of, what it computed for q.
        o_row = tl.arange(0, BT * BS) + (tl.load(p_length, volatile=True) - tokens - before)
        o_in_slab, o_shared = i_tile * BT + o_row // BS, o_row % BS
        o_t, o_h = first + o_in_slab, i_kv * SHARED + o_shared
        here = (o_t < tokens) & (o_shared < SHARED)
        if WHOLE:
            o_out = o_t.to(tl.int64) * (KV * SHARED) + o_h
            p_acc = p_out + o_out[:, None] * D + o_d[None, :]
        else:
            o_out = (i_split * slab + o_in_slab).to(tl.int64) * (KV * SHARED) + o_h
            p_acc = p_parts + o_out[:, None] * D + o_d[None, :]
            tl.store(p_weights + o_out, peak + tl.log2(total), mask=here)
        tl.store(p_acc, acc.to(p_acc.dtype.element_ty), mask=here[:, None] & m_d)


@kernel(do_not_specialize=["tokens", "first", "slab"])
def _combine(
    p_parts,
    p_weights,
    p_length,
    p_out,  # [T, H, D]
    tokens,
    first,
    slab,
    H: tl.constexpr,
    D: tl.constexpr,
    SPLIT: tl.constexpr,
    BP: tl.constexpr,  # parts at once
    BE: tl.constexpr,  # elements of a program
    OVERLAPS: tl.constexpr,
):
    """Add up the parts of some elements of one head of one token, each BP-th by itself first."""
    let_next_begin(OVERLAPS)
    await_previous(OVERLAPS)
    i_row, i_h = tl.program_id(0), tl.program_id(1)
    o_e = tl.program_id(2) * BE + tl.arange(0, BE)
    o_p = tl.arange(0, BP)
    parts = (tl.load(p_length) - tokens + first + i_row) // SPLIT + 1
    acc = tl.zeros([BP, BE], dtype=tl.float32)
    total = tl.zeros([BP], dtype=tl.float32)
    peak = float("-inf")
    for at in range(0, parts, BP):
        here = at + o_p < parts
        o_at = ((at + o_p) * slab + i_row).to(tl.int64) * H + i_h
        p_part = p_parts + o_at[:, None] * D + o_e[None, :]
        b_weight = tl.load(p_weights + o_at, mask=here, other=float("-inf"))
        b_part = tl.load(p_part, mask=here[:, None] & (o_e < D)[None, :], other=0.0)
        new_peak = tl.maximum(peak, tl.max(b_weight, axis=0))
        weight = tl.exp2(b_weight - new_peak)
        shrink = tl.exp2(peak - new_peak)
        acc = acc * shrink + weight[:, None] * b_part
        total = total * shrink + weight
        peak = new_peak
    b_out = tl.sum(acc, axis=0) / tl.sum(total, axis=0)
    o_out = (first + i_row).to(tl.int64) * (H * D) + i_h * D + o_e
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=o_e < D)


@kernel(do_not_specialize=["tokens"])
def _append(
    p_k,  # [T, KV, D]
    p_v,
    p_k_pages,  # [pages, KV, PAGE, ROW]
    p_v_pages,
    p_table,
    p_length,
    tokens,
    stride_k_t,
    stride_k_h,
    stride_v_t,
    stride_v_h,
    stride_page,
    D: tl.constexpr,
    ROW: tl.constexpr,
    SCALE_AT: tl.constexpr,  # of e4m3, in a row
    PAGE: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """BT tokens of one key head."""
    let_next_begin(OVERLAPS)
    await_previous(OVERLAPS)
    o_t = tl.program_id(0) * BT + tl.arange(0, BT)
    i_kv = tl.program_id(1)
    position = tl.load(p_length) - tokens + o_t
    page = tl.load(p_table + position // PAGE, mask=o_t < tokens, other=0).to(tl.int64)
    o_t, o_d = o_t.to(tl.int64)[:, None], tl.arange(0, BD)[None, :]
    mask = (o_t < tokens) & (o_d < D)
    at = page[:, None] * stride_page + (i_kv * PAGE + position % PAGE)[:, None] * ROW + o_d
    b_k = tl.load(p_k + o_t * stride_k_t + i_kv * stride_k_h + o_d, mask=mask, other=0.0)
    b_v = tl.load(p_v + o_t * stride_v_t + i_kv * stride_v_h + o_d, mask=mask, other=0.0)
    if ROW == D:
        tl.store(p_k_pages + at, b_k, mask=mask)
        tl.store(p_v_pages + at, b_v, mask=mask)
    else:
        _store_e4m3(p_k_pages + at, b_k, mask, SCALE_AT)
        _store_e4m3(p_v_pages + at, b_v, mask, SCALE_AT)


@triton.jit
def _store_e4m3(p_rows, b, mask, SCALE_AT: tl.constexpr):
    """Leave vectors [BT, BD] as `reference.rows_of` would, but for what nobody reads of a row."""
    b = b.to(tl.float32)
    b_peak = tl.maximum(tl.max(tl.abs(b), axis=1, keep_dims=True), SMALLEST)
    b_factor = tl.div_rn(tl.full(b_peak.shape, LARGEST, tl.float32), b_peak)
    tl.store(p_rows, e4m3_bytes(b * b_factor), mask=mask)
    p_scale = (p_rows + SCALE_AT).to(tl.pointer_type(tl.float32))
    first = mask & (tl.arange(0, mask.shape[1]) == 0)[None, :]
    tl.store(p_scale, tl.broadcast_to(tl.div_rn(b_peak, LARGEST), mask.shape), mask=first)


def append(kv: PagedKv, *, k: Tensor, v: Tensor) -> None:
    """Write T tokens' keys and values [T, kv_heads, head_dim] where `kv` ends, in one launch."""
    tokens, kv_heads, head_dim = k.shape
    _, _, page, _ = kv.k_pages.shape
    row = row_elements(head_dim, kv.k_pages.dtype)
    assert k.shape == v.shape
    assert kv.k_pages.shape[1:] == (kv_heads, page, row)
    assert kv.k_pages.is_contiguous()
    assert kv.v_pages.is_contiguous()
    assert k.dtype == v.dtype
    assert kv.k_pages.dtype in (k.dtype, E4M3_ROWS)
    assert k.stride(2) == v.stride(2) == 1
    block = next_power_of_2(head_dim)
    block_tokens = max(1, APPENDED // block)
    _append[(cdiv(tokens, block_tokens), kv_heads)](
        k,
        v,
        kv.k_pages,
        kv.v_pages,
        kv.table,
        kv.length,
        tokens,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        kv.k_pages.stride(0),
        D=head_dim,
        ROW=row,
        SCALE_AT=scale_at(head_dim),
        PAGE=page,
        BT=block_tokens,
        BD=block,
        num_warps=4,
        **overlapping(k),
    )


def paged_attention_prefill(q: Tensor, kv: PagedKv) -> Tensor:
    """`reference.paged_attention` for a block of tokens, in q's dtype.

    Args:
        q: [T, heads, head_dim], bf16 or fp32, the last dimension without gaps.
        kv: bf16, fp32 or `E4M3_ROWS`; `max_length` decides how many programs are launched.
    """
    tile = configuration(PREFILL_E4M3 if kv.k_pages.dtype == E4M3_ROWS else PREFILL, q)
    return _launch(q, kv, tile, split=PREFILL_SPLIT, added=PREFILL_SUM, room=PARTS_BYTES)


def paged_attention_decode(q: Tensor, kv: PagedKv) -> Tensor:
    """The same for one token, or for a few that are verified together.

    Nothing here waits for the device, and a launch serves every length up to `max_length`: a CUDA
    graph may hold it.
    """
    tile = configuration(DECODE if len(q) < VERIFIED else VERIFY, q)
    return _launch(q, kv, tile, split=DECODE_SPLIT, added=DECODE_SUM, room=None)


def _format(kv: PagedKv) -> str:
    """As of `matrices.triton.stored`."""
    if kv.k_pages.dtype != E4M3_ROWS:
        return "plain"
    return "e4m3" if chip.capability(kv.k_pages) >= MULTIPLIES_E4M3 else "bytes"


def _launch(
    q: Tensor, kv: PagedKv, tile: Tile, *, split: int, added: Sum, room: int | None
) -> Tensor:
    tokens, heads, head_dim = q.shape
    _, kv_heads, page, _ = kv.k_pages.shape
    assert kv.k_pages.shape == kv.v_pages.shape
    row = row_elements(head_dim, kv.k_pages.dtype)
    assert kv.k_pages.shape[3] == row
    assert kv.k_pages.is_contiguous()
    assert kv.v_pages.is_contiguous()
    assert heads % kv_heads == 0
    assert page % tile.keys == split % page == 0
    assert kv.table.dtype == kv.length.dtype == torch.int32
    assert len(kv.table) * page >= kv.max_length
    assert q.stride(2) == 1
    shared = heads // kv_heads
    padded = next_power_of_2(shared)
    tile_tokens = max(1, tile.rows // padded)
    splits = cdiv(kv.max_length, split)
    whole = splits == 1
    slab = tokens
    if room is not None and not whole:
        in_room = room // (4 * splits * heads * head_dim)
        slab = min(tokens, max(1, in_room // tile_tokens) * tile_tokens)
    block_d = max(16, next_power_of_2(head_dim))
    ahead = stages(tile.stages, kv.k_pages)
    described = chip.capability(q) >= DESCRIBED
    format_name = _format(kv)
    pages, scales = [kv.k_pages, kv.v_pages], [kv.k_pages, kv.v_pages]
    if format_name != "plain":
        scales = [x.view(torch.float32).view(-1)[scale_at(head_dim) // 4 :] for x in pages]
    if format_name == "e4m3":
        pages = [x.view(torch.float8_e4m3fn) for x in pages]
    if described:
        shape, block = [kv.k_pages.numel() // row, head_dim], [tile.keys, block_d]
        pages = [TensorDescriptor(x, shape, [row, 1], block) for x in pages]
    out = q.new_empty(q.shape)
    parts = q.new_empty(0 if whole else splits, slab, heads, head_dim, dtype=torch.float32)
    weights = q.new_empty(parts.shape[:3], dtype=torch.float32)
    for first in range(0, tokens, slab):
        rows = min(slab, tokens - first)
        _attend[(cdiv(rows, tile_tokens), kv_heads, splits)](
            q,
            *pages,
            *scales,
            kv.table,
            kv.length,
            out,
            parts,
            weights,
            tokens,
            first,
            slab,
            q.stride(0),
            q.stride(1),
            head_dim**-0.5 * 1.4426950408889634,
            SHARED=shared,
            KV=kv_heads,
            D=head_dim,
            PAGE=page,
            SPLIT=split,
            WHOLE=whole,
            BT=tile_tokens,
            BS=padded,
            BN=tile.keys,
            BD=block_d,
            ROW=row,
            FORMAT=format_name,
            STAGES=ahead,
            DESCRIBED=described,
            OPERAND=OPERAND,
            num_warps=tile.warps,
            num_stages=ahead,
            **overlapping(q),
        )
        if not whole:
            elements = min(added.elements, block_d)
            _combine[(rows, heads, cdiv(head_dim, elements))](
                parts,
                weights,
                kv.length,
                out,
                tokens,
                first,
                slab,
                H=heads,
                D=head_dim,
                SPLIT=split,
                BP=added.parts,
                BE=elements,
                num_warps=added.warps,
                **overlapping(q),
            )
    return out
