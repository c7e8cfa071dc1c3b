"""The router on a GPU: a token's experts and their weights in one launch."""

import torch
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import INTERPRETED
from qcn_kernels.launch import cdiv, kernel, next_power_of_2
from qcn_kernels.overlap.triton import await_previous, let_next_begin, overlapping

# Of a program. On a chip a token is one warp's, which awaits no other to find the largest;
# interpreted, many tokens cost no more.
TOKENS, WARPS = (4 if INTERPRETED else 1), 1


@kernel(do_not_specialize=["tokens"])
def _route(
    p_logits,  # [T, E]
    p_weights,  # [T, TOP_K] fp32
    p_chosen,  # [T, TOP_K] int64
    tokens,
    stride,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """The largest logit, TOP_K times over, of equals the first.

    A logit's bits, as an integer that is ordered as logits are, stand above the number of the
    expert, counted from the last: the largest of these is found in one reduction. Those of bf16
    leave the lower half of 32 bits to the number; of 32 bits a warp finds the largest at once.
    """
    let_next_begin(OVERLAPS)
    await_previous(OVERLAPS)
    o_t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    o_e, o_s = tl.arange(0, BE), tl.arange(0, BS)
    p_row = p_logits + tl.minimum(o_t, tokens - 1) * stride
    logits = tl.load(p_row[:, None] + o_e[None, :], mask=(o_e < E)[None, :], other=float("-inf"))
    logits = logits.to(tl.float32)
    peak = tl.max(logits, axis=1)
    total = tl.sum(tl.exp(logits - peak[:, None]), axis=1)
    SHORT: tl.constexpr = p_logits.dtype.element_ty == tl.bfloat16 and BE <= 0x10000
    TURNED: tl.constexpr = 0x7FFF0000 if SHORT else 0x7FFFFFFF  # of a negative logit's bits
    bits = logits.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ TURNED, bits)
    bits = tl.where(logits == 0.0, 0, bits)  # also of the negative zero
    if SHORT:
        left = (bits & -0x10000) | (BE - 1 - o_e)[None, :]
        least = tl.full([], -0x80000000, tl.int32)  # of a logit that is no number
    else:
        left = (bits.to(tl.int64) << 32) | (BE - 1 - o_e)[None, :]
        least = tl.full([], -0x8000000000000000, tl.int64)
    left = tl.where((o_e < E)[None, :], left, least)
    chosen = tl.zeros([BT, BS], dtype=tl.int32)
    weight = tl.zeros([BT, BS], dtype=tl.float32)
    of_chosen = tl.zeros([BT], dtype=tl.float32)
    for slot in tl.static_range(TOP_K):
        largest = tl.max(left, axis=1)
        if SHORT:
            at = BE - 1 - (largest & 0xFFFF)
            bits = largest & -0x10000
        else:
            at = BE - 1 - (largest & 0xFFFFFFFF).to(tl.int32)
            bits = (largest >> 32).to(tl.int32)
        bits = tl.where(bits < 0, bits ^ TURNED, bits)
        mass = tl.exp(bits.to(tl.float32, bitcast=True) - peak)
        of_chosen += mass
        this = (o_s == slot)[None, :]
        chosen = tl.where(this, at[:, None], chosen)
        weight = tl.where(this, mass[:, None], weight)
        left = tl.where(left == largest[:, None], least, left)
    weight /= (of_chosen if NORMALISE else total)[:, None]
    at_out = o_t[:, None] * TOP_K + o_s[None, :]
    mask = (o_t < tokens)[:, None] & (o_s < TOP_K)[None, :]
    tl.store(p_weights + at_out, weight, mask=mask)
    tl.store(p_chosen + at_out, chosen.to(tl.int64), mask=mask)


def route(logits: Tensor, *, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Choose experts; as `moe.route`. logits: [T, experts] or [experts], columns without gaps."""
    if logits.ndim == 1:
        weights, chosen = route(logits.unsqueeze(0), top_k=top_k, normalise=normalise)
        return weights.squeeze(0), chosen.squeeze(0)
    tokens, experts = logits.shape
    assert top_k <= experts
    assert logits.stride(1) == 1
    weights = logits.new_empty(tokens, top_k, dtype=torch.float32)
    chosen = logits.new_empty(tokens, top_k, dtype=torch.int64)
    _route[(cdiv(tokens, TOKENS),)](
        logits,
        weights,
        chosen,
        tokens,
        logits.stride(0),
        E=experts,
        TOP_K=top_k,
        NORMALISE=normalise,
        BT=TOKENS,
        BE=next_power_of_2(experts),
        BS=next_power_of_2(top_k),
        num_warps=WARPS,
        **overlapping(logits),
    )
    return weights, chosen
