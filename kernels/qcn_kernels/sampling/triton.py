"""Greedy choice and sampling among a few on a GPU, in two launches.

The vocabulary is cut into blocks. A program takes the `count` largest logits of one block, largest
first; a second launch takes the `count` largest of those, and chooses. Where logits are equal the
lower id comes first, in both.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.launch import cdiv, kernel, next_power_of_2
from qcn_kernels.sampling import MOST_SELECTED

BLOCK = 4096


@triton.jit
def _take_largest(left, o):
    """The largest of `left` and where it is, of equals the first; and `left` without it."""
    largest, at = tl.max(left, axis=0, return_indices=True, return_indices_tie_break_left=True)
    return largest, at, tl.where(o == at, float("-inf"), left)


@kernel(do_not_specialize=["count"])
def _of_block(
    p_logits,  # [T, VOCABULARY] fp32
    p_largest,  # [T, blocks, count] fp32
    p_ids,  # [T, blocks, count] int32
    count,
    stride,
    VOCABULARY: tl.constexpr,
    B: tl.constexpr,
):
    i_block, i_t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o = tl.arange(0, B)
    o_id = i_block * B + o
    p_row = p_logits + i_t * stride
    left = tl.load(p_row + o_id, mask=o_id < VOCABULARY, other=float("-inf"))
    at_out = (i_t * tl.num_programs(0) + i_block) * count
    for i in range(count):
        largest, at, left = _take_largest(left, o)
        tl.store(p_largest + at_out + i, largest)
        tl.store(p_ids + at_out + i, tl.minimum(i_block * B + at, VOCABULARY - 1))


@kernel(do_not_specialize=["candidates", "count", "temperature", "top_p"])
def _choose(
    p_largest,  # [T, candidates] fp32
    p_ids,  # [T, candidates] int32
    p_uniform,  # [T] fp32
    p_out,  # [T] int64
    candidates,
    count,
    temperature,
    top_p,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    i_t = tl.program_id(0).to(tl.int64)
    o, o_k = tl.arange(0, BC), tl.arange(0, BK)
    p_row = p_largest + i_t * candidates
    left = tl.load(p_row + o, mask=o < candidates, other=float("-inf"))
    kept = tl.full([BK], float("-inf"), dtype=tl.float32)
    place = tl.zeros([BK], dtype=tl.int32)
    for i in range(count):
        largest, at, left = _take_largest(left, o)
        kept = tl.where(o_k == i, largest, kept)
        place = tl.where(o_k == i, at, place)
    kept /= temperature
    mass = tl.exp(kept - tl.max(kept, axis=0))
    mass /= tl.sum(mass, axis=0)
    before = tl.cumsum(mass, axis=0) - mass
    mass = tl.where((before >= top_p) & (before > 0.0), 0.0, mass)
    below = tl.cumsum(mass, axis=0)
    target = tl.load(p_uniform + i_t) * tl.max(below, axis=0)
    last = tl.sum((mass > 0.0).to(tl.int32), axis=0) - 1
    drawn = tl.minimum(tl.sum((below <= target).to(tl.int32), axis=0), last)
    drawn = tl.sum(tl.where(o_k == drawn, place, 0), axis=0)
    drawn = tl.minimum(drawn, candidates - 1)
    tl.store(p_out + i_t, tl.load(p_ids + i_t * candidates + drawn).to(tl.int64))


def greedy(logits: Tensor) -> Tensor:
    """Return the ids [T] int64 of the largest logits; as `sampling.greedy`."""
    return _launch(logits, 1.0, 1, 1.0, logits.new_zeros(len(logits), dtype=torch.float32))


def sample(
    logits: Tensor, *, temperature: float, top_k: int, top_p: float, uniform: Tensor
) -> Tensor:
    """Return the ids [T] int64 of tokens drawn among a few; as `sampling.sample`, top_k > 0."""
    return _launch(logits, temperature, min(top_k, logits.shape[1]), top_p, uniform)


def _launch(
    logits: Tensor, temperature: float, count: int, top_p: float, uniform: Tensor
) -> Tensor:
    tokens, vocabulary = logits.shape
    assert logits.dtype == uniform.dtype == torch.float32
    assert logits.stride(1) == 1
    assert uniform.shape == (tokens,)
    assert uniform.is_contiguous()
    assert 0 < count <= min(vocabulary, MOST_SELECTED)
    blocks = cdiv(vocabulary, BLOCK)
    largest = logits.new_empty(tokens, blocks, count)
    ids = logits.new_empty(tokens, blocks, count, dtype=torch.int32)
    out = logits.new_empty(tokens, dtype=torch.int64)
    _of_block[(blocks, tokens)](
        logits,
        largest,
        ids,
        count,
        logits.stride(0),
        VOCABULARY=vocabulary,
        B=min(BLOCK, next_power_of_2(vocabulary)),
        num_warps=8,
    )
    _choose[(tokens,)](
        largest,
        ids,
        uniform,
        out,
        blocks * count,
        count,
        float(temperature),
        float(top_p),
        BC=next_power_of_2(blocks * MOST_SELECTED),
        BK=MOST_SELECTED,
        num_warps=8,
    )
    return out
