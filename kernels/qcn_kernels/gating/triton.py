"""Activations behind a gate on a GPU: one reading, fp32 in registers, one writing."""

import torch
import triton.language as tl
from torch import Tensor

from qcn_kernels.fp8.matrices import BLOCK
from qcn_kernels.fp8.quantised import Quantised, empty_quantised
from qcn_kernels.launch import cdiv, kernel, next_power_of_2
from qcn_kernels.matrices.triton import store_quantised

TILE = 4096  # elements of a program


@kernel(do_not_specialize=["rows"])
def _gated(
    p_x,  # [T, COLUMNS]
    p_gate,  # [T, COLUMNS]
    p_out,  # [T, COLUMNS]
    p_values,  # [T, COLUMNS] e4m3, and
    p_scales,  # [T, COLUMNS / 128] fp32: the output once more, for FP8 products
    rows,  # T
    stride_x,
    stride_gate,
    COLUMNS: tl.constexpr,
    SILU: tl.constexpr,
    QUANTISED: tl.constexpr,
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
    b_y = b_y.to(p_out.dtype.element_ty)
    tl.store(p_out + o_row * COLUMNS + o_c, b_y, mask=mask)
    if QUANTISED:
        b_y = b_y.to(tl.float32)
        store_quantised(b_y, p_values, p_scales, o_row, o_c, mask, rows, COLUMNS, BR, BC)


def gated(x: Tensor, *, gate: Tensor, gating: str) -> Tensor:
    """Return `x · gating(gate)` in x's dtype; x and gate [T, columns], columns without gaps."""
    return _launch(x, gate, gating, None)


def gated_quantised(x: Tensor, *, gate: Tensor, gating: str) -> Quantised:
    """Return the same, of 128 columns or more, with its quantised form beside it."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    room = empty_quantised(out, BLOCK)
    _launch(x, gate, gating, room)
    return room


def _launch(x: Tensor, gate: Tensor, gating: str, room: Quantised | None) -> Tensor:
    rows, columns = x.shape
    assert gate.shape == x.shape
    assert x.stride(1) == gate.stride(1) == 1
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if room is None else room.plain
    block = min(TILE, next_power_of_2(columns))
    block_rows = TILE // block
    _gated[(cdiv(rows, block_rows), cdiv(columns, block))](
        x,
        gate,
        out,
        out if room is None else room.values,
        out if room is None else room.scales,
        rows,
        x.stride(0),
        gate.stride(0),
        COLUMNS=columns,
        SILU=gating == "silu",
        QUANTISED=room is not None,
        BR=block_rows,
        BC=block,
        num_warps=4,
    )
    return out
