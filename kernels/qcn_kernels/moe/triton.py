"""The mixture on a GPU: router, experts of a block of tokens, experts of a few tokens.

Prefill sorts the (token, expert) pairs by expert and cuts each expert's into tiles; a tile that is
not full is padded, never shared. Two launches multiply: gate and up, whose rows are taken by turns
so that a thread holds both of what it multiplies, and down, which leaves a part for each pair. A
third adds the parts of a token, in the order in which its experts were chosen. Nothing is split or
added up by atomics, and sums run over the columns in one order: a token's result does not depend
on what shares its launch.

Decode has a program for some rows of one pair, then one for some rows of a token, which takes its
experts one after the other. Only chosen experts are read.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import configuration
from qcn_kernels.fp8.matrices import BLOCK
from qcn_kernels.fp8.triton import activations
from qcn_kernels.matrices.triton import (
    Matrices,
    operand,
    quantised,
    row_products,
    stored,
    tile_product,
)

ROUTED_TOKENS = 4  # of a program
STEP_COLUMNS = 512  # at once in decode
MOST_STEP_TOKENS = 16
COMBINED = 1024  # elements of a program that adds up


@triton.jit(do_not_specialize=["tokens"])
def _route(
    p_logits,  # [T, E], and the gate of the shared expert behind them
    p_weights,  # [T, SLOTS] fp32
    p_chosen,  # [T, SLOTS] int64
    tokens,
    stride,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    SLOTS: tl.constexpr,  # TOP_K, and one for the shared expert
    NORMALISE: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BS: tl.constexpr,
):
    """The largest logit, TOP_K times over, of equals the first."""
    o_t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    o_e, o_s = tl.arange(0, BE), tl.arange(0, BS)
    p_row = p_logits + tl.minimum(o_t, tokens - 1) * stride
    left = tl.load(p_row[:, None] + o_e[None, :], mask=(o_e < E)[None, :], other=float("-inf"))
    left = left.to(tl.float32)
    peak = tl.max(left, axis=1)
    total = tl.sum(tl.exp(left - peak[:, None]), axis=1)
    chosen = tl.zeros([BT, BS], dtype=tl.int32)
    weight = tl.zeros([BT, BS], dtype=tl.float32)
    of_chosen = tl.zeros([BT], dtype=tl.float32)
    for slot in tl.static_range(TOP_K):
        largest, at = tl.max(left, axis=1, return_indices=True, return_indices_tie_break_left=True)
        at = tl.minimum(at, E - 1)  # logits that are no number must not lead out of the weights
        mass = tl.exp(largest - peak)
        of_chosen += mass
        this = (o_s == slot)[None, :]
        chosen = tl.where(this, at[:, None], chosen)
        weight = tl.where(this, mass[:, None], weight)
        left = tl.where(o_e[None, :] == at[:, None], float("-inf"), left)
    weight /= (of_chosen if NORMALISE else total)[:, None]
    if SLOTS > TOP_K:
        gate = tl.sigmoid(tl.load(p_row + E).to(tl.float32))
        chosen = tl.where((o_s == TOP_K)[None, :], E, chosen)
        weight = tl.where((o_s == TOP_K)[None, :], gate[:, None], weight)
    at_out = o_t[:, None] * SLOTS + o_s[None, :]
    mask = (o_t < tokens)[:, None] & (o_s < SLOTS)[None, :]
    tl.store(p_weights + at_out, weight, mask=mask)
    tl.store(p_chosen + at_out, chosen.to(tl.int64), mask=mask)


def route(
    logits: Tensor, *, top_k: int, normalise: bool, shared: bool
) -> tuple[Tensor, Tensor]:
    """Choose experts; as `moe.route`. logits: [T, experts] or [experts], columns without gaps."""
    if logits.ndim == 1:
        weights, chosen = route(
            logits.unsqueeze(0), top_k=top_k, normalise=normalise, shared=shared
        )
        return weights.squeeze(0), chosen.squeeze(0)
    tokens, experts = logits.shape
    experts, slots = experts - shared, top_k + shared
    assert top_k <= experts
    assert logits.stride(1) == 1
    weights = logits.new_empty(tokens, slots, dtype=torch.float32)
    chosen = logits.new_empty(tokens, slots, dtype=torch.int64)
    _route[(triton.cdiv(tokens, ROUTED_TOKENS),)](
        logits,
        weights,
        chosen,
        tokens,
        logits.stride(0),
        E=experts,
        TOP_K=top_k,
        SLOTS=slots,
        NORMALISE=normalise,
        BT=ROUTED_TOKENS,
        BE=triton.next_power_of_2(experts),
        BS=triton.next_power_of_2(slots),
        num_warps=4,
    )
    return weights, chosen
