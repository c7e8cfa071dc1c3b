"""The causal convolution on a GPU: a tile of tokens and channels to a program, everything fp32.

A token's sum runs oldest input first, wherever the token stands: no grid has a say in it. The state
is read by the programs of the first tokens and replaced by those of the last, so the new one is
written beside it and copied.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, CHANNELS = 32, 128  # of a tile: 4 KB of bf16 in each of `kernel` overlapping readings
STEP_CHANNELS = 256


@triton.jit(do_not_specialize=["tokens"])
def _convolve(
    p_x,  # [T, C]
    p_weight,  # [KERNEL, C] fp32
    p_state,  # [KERNEL - 1, C] fp32
    p_next_state,  # [KERNEL - 1, C] fp32
    p_out,  # [T, C]
    tokens,
    channels,
    stride_x,
    stride_weight,
    stride_state,
    stride_out,
    scaled_heads,
    scale,
    NORMALISED: tl.constexpr,  # whether each head of C is l2-normalised
    HEAD: tl.constexpr,  # channels of a program
    KERNEL: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    BS: tl.constexpr,  # at least KERNEL - 1
):
    i_t, i_head = tl.program_id(0), tl.program_id(1)
    o_t = i_t.to(tl.int64) * BT + tl.arange(0, BT)[:, None]
    o_head = tl.arange(0, BC)[None, :]
    o_c = i_head * HEAD + o_head
    inside = (o_head < HEAD) & (o_c < channels)
    b_y = tl.zeros([BT, BC], dtype=tl.float32)
    for j in tl.static_range(KERNEL):
        o_in = o_t + (j - KERNEL + 1)
        new = inside & (o_in >= 0) & (o_t < tokens)
        b_x = tl.load(p_x + o_in * stride_x + o_c, mask=new, other=0.0).to(tl.float32)
        old = inside & (o_in < 0)
        b_x += tl.load(p_state + (o_in + KERNEL - 1) * stride_state + o_c, mask=old, other=0.0)
        b_y += b_x * tl.load(p_weight + j * stride_weight + o_c, mask=inside, other=0.0)
    b_y = b_y * tl.sigmoid(b_y)
    if NORMALISED:
        b_y *= tl.rsqrt(tl.sum(b_y * b_y, axis=1) + 1e-6)[:, None]
        b_y *= tl.where(i_head < scaled_heads, scale, 1.0)
    mask = inside & (o_t < tokens)
    tl.store(p_out + o_t * stride_out + o_c, b_y.to(p_out.dtype.element_ty), mask=mask)
    if i_t == tl.num_programs(0) - 1:
        o_row = tl.arange(0, BS)[:, None]
        o_last = tokens + o_row - (KERNEL - 1)
        kept = inside & (o_row < KERNEL - 1)
        p_last = p_x + o_last.to(tl.int64) * stride_x + o_c
        b_last = tl.load(p_last, mask=kept & (o_last >= 0), other=0.0).to(tl.float32)
        p_old = p_state + (tokens + o_row) * stride_state + o_c
        b_last += tl.load(p_old, mask=kept & (o_last < 0), other=0.0)
        tl.store(p_next_state + o_row * channels + o_c, b_last, mask=kept)


@triton.jit
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
    return _launch(x, weight=weight, state=state, head_dim=None, scaled_heads=0, scale=1.0)


def causal_conv1d_l2_norm(
    x: Tensor, *, weight: Tensor, state: Tensor, head_dim: int, scaled_heads: int
) -> Tensor:
    """Convolve T tokens and l2-normalise each head of `head_dim` channels.

    The first `scaled_heads` heads (the queries) are scaled by 1/√head_dim as well.
    """
    return _launch(
        x,
        weight=weight,
        state=state,
        head_dim=head_dim,
        scaled_heads=scaled_heads,
        scale=head_dim**-0.5,
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
    grid = (triton.cdiv(channels, STEP_CHANNELS),)
    _step[grid](x, weight, state, out, channels, KERNEL=kernel, BC=STEP_CHANNELS, num_warps=4)
    return out


def _launch(
    x: Tensor,
    *,
    weight: Tensor,
    state: Tensor,
    head_dim: int | None,
    scaled_heads: int,
    scale: float,
) -> Tensor:
    tokens, channels = x.shape
    kernel = len(weight)
    assert weight.shape == (kernel, channels)
    assert state.shape == (kernel - 1, channels)
    assert weight.dtype == state.dtype == torch.float32
    assert x.stride(1) == weight.stride(1) == 1
    assert state.stride(1) == 1 or not state.numel()
    assert head_dim is None or channels % head_dim == 0
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    next_state = torch.empty_like(state, memory_format=torch.contiguous_format)
    head = head_dim or CHANNELS
    _convolve[(triton.cdiv(tokens, TOKENS), triton.cdiv(channels, head))](
        x,
        weight,
        state,
        next_state,
        out,
        tokens,
        channels,
        x.stride(0),
        weight.stride(0),
        state.stride(0),
        out.stride(0),
        scaled_heads,
        scale,
        NORMALISED=head_dim is not None,
        HEAD=head,
        KERNEL=kernel,
        BT=TOKENS,
        BC=triton.next_power_of_2(head),
        BS=triton.next_power_of_2(kernel),
        num_warps=4,
    )
    state.copy_(next_state)
    return out
