"""The causal convolution on a GPU: some channels of some tokens to a program, everything fp32.

A token's sum runs oldest input first, wherever the token stands: no grid has a say in it. Nor has
the compiler. Of two products that are added it would fuse one with the sum, and which, by the
token's place in a run. So nothing is fused: the kernel waits for memory anyway.

The state is read by the programs of the first tokens alone, each its own channels: so they replace
it, when they have read it.
"""

import torch
import triton.language as tl
from torch import Tensor

from qcn_kernels.launch import cdiv, kernel, next_power_of_2

CHANNELS = 128  # of a program, where there are no heads
RUNS, TOKENS = 8, 8  # of a program, and of a run: of a token a thread holds 16 bytes
STEP_CHANNELS = 256


@kernel(do_not_specialize=["tokens"])
def _convolve(
    p_x,  # [T, C]
    p_weight,  # [KERNEL, C] fp32
    p_state,  # [KERNEL - 1, C] fp32, in and out
    p_out,  # [T, C]
    tokens,
    channels,
    stride_x,
    stride_weight,
    stride_state,
    stride_out,
    normalised_heads,  # the first ones, which are l2-normalised
    scaled_heads,  # the first of these
    scale,
    HEAD: tl.constexpr,  # channels of a program
    KERNEL: tl.constexpr,
    RUNS: tl.constexpr,
    BT: tl.constexpr,  # tokens of a run
    BC: tl.constexpr,
    BS: tl.constexpr,  # at least KERNEL - 1
):
    """RUNS runs of BT tokens each, token after token, their inputs in registers."""
    i_t, i_head = tl.program_id(0), tl.program_id(1)
    o_first = (i_t.to(tl.int64) * RUNS + tl.arange(0, RUNS)[:, None]) * BT
    o_head = tl.arange(0, BC)[None, :]
    o_c = i_head * HEAD + o_head
    inside = (o_head < HEAD) & (o_c < channels)
    weights, inputs = (), ()  # the oldest first
    for j in tl.static_range(KERNEL):
        b_w = tl.load(p_weight + j * stride_weight + o_c, mask=inside, other=0.0)
        weights += (b_w,)  # type: ignore[assignment] # it grows as the loop is unrolled
    for j in tl.static_range(KERNEL - 1):
        o_in = o_first + (j - KERNEL + 1)
        new, old = inside & (o_in >= 0) & (o_in < tokens), inside & (o_in < 0)
        b_x = tl.load(p_x + o_in * stride_x + o_c, mask=new, other=0.0).to(tl.float32)
        at_old = (o_in + KERNEL - 1) * stride_state + o_c
        b_x += tl.load(p_state + at_old, mask=old, other=0.0)
        inputs += (b_x,)  # type: ignore[assignment]
    for i in tl.static_range(BT):
        o_t = o_first + i
        mask = inside & (o_t < tokens)
        b_x = tl.load(p_x + o_t * stride_x + o_c, mask=mask, other=0.0).to(tl.float32)
        inputs += (b_x,)  # type: ignore[assignment]
        b_y = inputs[i] * weights[0]  # type: ignore[misc]
        for j in tl.static_range(1, KERNEL):
            b_y += inputs[i + j] * weights[j]
        b_y = b_y / (1.0 + tl.exp(-b_y))
        if i_head < normalised_heads:
            b_y *= tl.rsqrt(tl.sum(b_y * b_y, axis=1) + 1e-6)[:, None]
            b_y *= tl.where(i_head < scaled_heads, scale, 1.0)
        tl.store(p_out + o_t * stride_out + o_c, b_y.to(p_out.dtype.element_ty), mask=mask)
    if i_t == 0:
        o_row = tl.arange(0, BS)[:, None]
        o_last = tokens + o_row - (KERNEL - 1)
        kept = inside & (o_row < KERNEL - 1)
        p_last = p_x + o_last.to(tl.int64) * stride_x + o_c
        b_last = tl.load(p_last, mask=kept & (o_last >= 0), other=0.0).to(tl.float32)
        p_old = p_state + (tokens + o_row) * stride_state + o_c
        b_last += tl.load(p_old, mask=kept & (o_last < 0), other=0.0)
        tl.debug_barrier()  # all threads have read it
        tl.store(p_state + o_row * stride_state + o_c, b_last, mask=kept)


@kernel()
def _step(p_x, p_weight, p_state, p_out, channels, KERNEL: tl.constexpr, BC: tl.constexpr):
    """BC channels of one token; they alone read and write these channels' state."""
    o_c = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = o_c < channels
    b_x = tl.load(p_x + o_c, mask=inside, other=0.0).to(tl.float32)
    b_y = tl.zeros([BC], dtype=tl.float32)
    for j in tl.static_range(KERNEL - 1):
        b_old = tl.load(p_state + j * channels + o_c, mask=inside, other=0.0)
        b_y += b_old * tl.load(p_weight + j * channels + o_c, mask=inside, other=0.0)
        if j > 0:
            tl.store(p_state + (j - 1) * channels + o_c, b_old, mask=inside)
    last: tl.constexpr = KERNEL - 1
    b_y += b_x * tl.load(p_weight + last * channels + o_c, mask=inside, other=0.0)
    if KERNEL > 1:
        tl.store(p_state + (last - 1) * channels + o_c, b_x, mask=inside)
    b_y = b_y * tl.sigmoid(b_y)
    tl.store(p_out + o_c, b_y.to(p_out.dtype.element_ty), mask=inside)


def causal_conv1d(x: Tensor, *, weight: Tensor, state: Tensor) -> Tensor:
    """Convolve T tokens, as `reference.causal_conv1d`.

    Args:
        x: [T, channels] bf16 or fp32; tokens may lie apart.
        weight: [kernel, channels] fp32.
        state: [kernel - 1, channels] fp32, updated in place.

    Returns:
        [T, channels] in x's dtype.
    """
    return _launch(x, weight=weight, state=state, head_dim=CHANNELS, normalised=0, scaled=0)


def causal_conv1d_l2_norm(
    x: Tensor, *, weight: Tensor, state: Tensor, head_dim: int, normalised: int, scaled: int
) -> Tensor:
    """Convolve T tokens, as `causal_conv1d`, and l2-normalise heads of `head_dim` channels.

    Those are the first `normalised` ones (queries and keys); the first `scaled` of them (the
    queries) are scaled by 1/√head_dim as well.
    """
    assert scaled <= normalised <= x.shape[1] // head_dim
    return _launch(
        x, weight=weight, state=state, head_dim=head_dim, normalised=normalised, scaled=scaled
    )


def causal_conv1d_step(x: Tensor, *, weight: Tensor, state: Tensor) -> Tensor:
    """Convolve one token, x [channels]; state in place."""
    kernel, channels = weight.shape
    assert x.shape == (channels,)
    assert state.shape == (kernel - 1, channels)
    assert x.is_contiguous()
    assert weight.is_contiguous()
    assert state.is_contiguous()
    out = torch.empty_like(x)
    grid = (cdiv(channels, STEP_CHANNELS),)
    _step[grid](x, weight, state, out, channels, KERNEL=kernel, BC=STEP_CHANNELS, num_warps=4)
    return out


def _launch(
    x: Tensor, *, weight: Tensor, state: Tensor, head_dim: int, normalised: int, scaled: int
) -> Tensor:
    tokens, channels = x.shape
    kernel = weight.shape[0]
    assert weight.shape == (kernel, channels)
    assert state.shape == (kernel - 1, channels)
    assert weight.dtype == state.dtype == torch.float32
    assert x.stride(1) == weight.stride(1) == 1
    assert state.stride(1) == 1 or not state.numel()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _convolve[(cdiv(tokens, RUNS * TOKENS), cdiv(channels, head_dim))](
        x,
        weight,
        state,
        out,
        tokens,
        channels,
        x.stride(0),
        weight.stride(0),
        state.stride(0),
        out.stride(0),
        normalised,
        scaled,
        head_dim**-0.5,
        HEAD=head_dim,
        KERNEL=kernel,
        RUNS=RUNS,
        BT=TOKENS,
        BC=next_power_of_2(head_dim),
        BS=next_power_of_2(kernel),
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out
