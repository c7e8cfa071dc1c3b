"""Activations behind a gate on a GPU: one reading, fp32 in registers, one writing."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # elements of a program


@triton.jit(do_not_specialize=["rows"])
def _gated(
    p_x,  # [T, COLUMNS]
    p_gate,  # [T, COLUMNS]
    p_out,  # [T, COLUMNS]
    rows,  # T
    stride_x,
    stride_gate,
    COLUMNS: tl.constexpr,
    SILU: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    o_row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)[:, None]
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)[None, :]
    mask = (o_row < rows) & (o_c < COLUMNS)
    b_x = tl.load(p_x + o_row * stride_x + o_c, mask=mask, other=0.0).to(tl.float32)
    b_gate = tl.load(p_gate + o_row * stride_gate + o_c, mask=mask, other=0.0).to(tl.float32)
    b_y = b_x * tl.sigmoid(b_gate)
    if SILU:
        b_y *= b_gate
    tl.store(p_out + o_row * COLUMNS + o_c, b_y.to(p_out.dtype.element_ty), mask=mask)


def gated(x: Tensor, *, gate: Tensor, gating: str) -> Tensor:
    """Return `x · gating(gate)` in x's dtype; x and gate [T, columns], columns without gaps."""
    rows, columns = x.shape
    assert gate.shape == x.shape
    assert x.stride(1) == gate.stride(1) == 1
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = min(TILE, triton.next_power_of_2(columns))
    block_rows = TILE // block
    _gated[(triton.cdiv(rows, block_rows), triton.cdiv(columns, block))](
        x,
        gate,
        out,
        rows,
        x.stride(0),
        gate.stride(0),
        COLUMNS=columns,
        SILU=gating == "silu",
        BR=block_rows,
        BC=block,
        num_warps=4,
    )
    return out
