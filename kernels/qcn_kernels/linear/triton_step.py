"""A matrix product of one token on a GPU, with what stands in front of it and behind: one launch.

In front: the norm of a residual stream, or a gate. Behind: a bias, and the residual stream that the
result is added to. A program takes a few rows of the weight and reads the whole token; it sums the
squares for a norm beside its products. Parts of a weight in two formats are programs of one launch.

Activations are not quantised and products are fp32. A weight is read once for a few tokens that are
verified together: what the first of them reads, the others find in L1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.chip import INTERPRETED
from qcn_kernels.fp8.matrices import Fp8Matrices
from qcn_kernels.launch import cdiv, kernel, next_power_of_2
from qcn_kernels.linear.stacked import Stacked, Weight
from qcn_kernels.matrices.triton import row_sums, rows_of, run_columns, stored, values_of
from qcn_kernels.overlap.triton import await_previous, let_next_begin, overlapping
from qcn_kernels.rms_norm.normed import Normed

COLUMNS = 4096  # at once
MANY_ROWS = 4096  # more of them, and programs outnumber what multiprocessors hold at once
MOST_TOKENS = 16


@triton.jit
def _activations(p_x, p_beside, at, COLUMNS: tl.constexpr, INPUT: tl.constexpr, BC: tl.constexpr):
    """What columns from `at` on are multiplied by [BC / RUN, RUN], and x's squares, added up."""
    o = run_columns(at, BC)
    b_x = tl.load(p_x + o, mask=o < COLUMNS, other=0.0).to(tl.float32)
    b_square = tl.zeros([], dtype=tl.float32)
    if INPUT != "plain":
        b_beside = tl.load(p_beside + o, mask=o < COLUMNS, other=0.0).to(tl.float32)
        if INPUT == "normed":
            b_square = tl.sum(tl.sum(b_x * b_x, axis=1), axis=0)
            b_x *= b_beside
        elif INPUT == "sigmoid":
            b_x *= tl.sigmoid(b_beside)
        else:
            b_x *= b_beside * tl.sigmoid(b_beside)
    return b_x, b_square


@triton.jit
def _rows(
    p_x,
    p_beside,
    weights,
    p_bias,
    p_out,
    first,  # row of this part
    at_row,  # the part's first row among all
    tokens,
    stride_x,
    stride_beside,
    stride_out,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FORMAT: tl.constexpr,
    INPUT: tl.constexpr,
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
    ALONE: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    o_r = first + tl.arange(0, BR)
    here = o_r < ROWS
    o_row = tl.minimum(o_r, ROWS - 1).to(tl.int64)
    if ALONE:  # else read again for each token
        b_first, b_first_scales = rows_of(weights, o_row, 0, ROWS, COLUMNS, FORMAT, BR, BC)
    if BIASED:
        b_bias = tl.load(p_bias + at_row + o_r, mask=here, other=0.0).to(tl.float32)
    await_previous(OVERLAPS)
    for i_t in range(1 if ALONE else tokens):
        p_sum = p_out + i_t * stride_out + at_row + o_r
        if ADDED:  # asked for here, so that none waits for it at the end
            b_to = tl.load(p_sum, mask=here, other=0.0)
        b_out = tl.zeros([BR], dtype=tl.float32)
        b_square = tl.zeros([], dtype=tl.float32)
        for at in tl.static_range(0, COLUMNS, BC):
            if ALONE and at == 0:
                b_w, b_scales = b_first, b_first_scales
            else:
                b_w, b_scales = rows_of(weights, o_row, at, ROWS, COLUMNS, FORMAT, BR, BC)
            b_x, b_part = _activations(p_x + i_t * stride_x, p_beside + i_t * stride_beside, at,
                                       COLUMNS, INPUT, BC)  # fmt: skip
            b_square += b_part
            b_out += row_sums(values_of(b_w, FORMAT) * b_x[None, :, :], b_scales, FORMAT)
        if INPUT == "normed":
            b_out *= tl.rsqrt(b_square / COLUMNS + eps)
        if BIASED:
            b_out += b_bias
        if ADDED:
            b_out += b_to
        tl.store(p_sum, b_out.to(p_out.dtype.element_ty), mask=here)


@kernel(do_not_specialize=["tokens"])
def _linear_step(
    p_x,  # [T, COLUMNS]
    p_beside,  # [COLUMNS] the norm's scale, or [T, COLUMNS] the gate
    weights,  # ROWS of them
    others,  # OTHER_ROWS under these
    p_bias,  # [ROWS + OTHER_ROWS]
    p_out,  # [T, ROWS + OTHER_ROWS]
    tokens,
    stride_x,
    stride_beside,
    stride_out,
    eps,
    ROWS: tl.constexpr,
    OTHER_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FORMAT: tl.constexpr,
    OTHER_FORMAT: tl.constexpr,
    INPUT: tl.constexpr,  # "plain", "normed", or what is done to the gate
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
    ALONE: tl.constexpr,  # whether there is one token
    BR: tl.constexpr,
    BC: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """BR rows of either part of a weight, for all tokens.

    The other part comes first: of bf16 under FP8, its rows take longer.
    """
    let_next_begin(OVERLAPS)
    other_programs: tl.constexpr = (OTHER_ROWS + BR - 1) // BR
    i = tl.program_id(0) - other_programs
    if i >= 0:
        _rows(p_x, p_beside, weights, p_bias, p_out, i * BR, 0, tokens, stride_x, stride_beside,
              stride_out, eps, ROWS, COLUMNS, FORMAT, INPUT, BIASED, ADDED, ALONE, BR, BC,
              OVERLAPS)  # fmt: skip
    elif OTHER_ROWS > 0:
        _rows(p_x, p_beside, others, p_bias, p_out, (i + other_programs) * BR, ROWS, tokens,
              stride_x, stride_beside, stride_out, eps, OTHER_ROWS, COLUMNS, OTHER_FORMAT, INPUT,
              BIASED, ADDED, ALONE, BR, BC, OVERLAPS)  # fmt: skip


def linear_step(x: Tensor | Normed, weight: Weight, bias: Tensor | None) -> Tensor:
    """Return `x · weightᵀ + bias` in the weight's dtype, for x [columns] or a few [T, columns].

    Nothing here waits for the device: a CUDA graph may hold it.
    """
    given = x.x if isinstance(x, Normed) else x
    out = given.new_empty(*given.shape[:-1], weight.shape[0], dtype=weight.dtype)
    if isinstance(x, Normed):
        assert x.scale.is_contiguous()
        _launch(given, x.scale, "normed", weight, bias, out, eps=x.eps, added=False)
    else:
        _launch(given, None, "plain", weight, bias, out, eps=0.0, added=False)
    return out


def add_linear_step(
    to: Tensor, x: Tensor, weight: Weight, bias: Tensor | None, *, gate: Tensor | None, gating: str
) -> None:
    """Add a token's product to its residual stream; as `linear.add_linear_step`, or of a few."""
    assert to.dtype == torch.float32
    name = "plain" if gate is None else gating
    _launch(x, gate, name, weight, bias, to, eps=0.0, added=True)


def _launch(
    x: Tensor,
    beside: Tensor | None,
    input_name: str,
    weight: Weight,
    bias: Tensor | None,
    out: Tensor,
    *,
    eps: float,
    added: bool,
) -> None:
    """Launch once for every two parts of a weight; x [..., columns] and out without inner gaps."""
    rows, columns = weight.shape
    if x.ndim == 1:
        x, out = x.unsqueeze(0), out.unsqueeze(0)
        beside = beside.unsqueeze(0) if beside is not None else None
    assert x.shape[1] == columns
    assert out.shape == (len(x), rows)
    assert len(x) <= MOST_TOKENS
    assert x.stride(1) == out.stride(1) == 1
    assert bias is None or bias.shape == (rows,)
    beside_stride = 0
    if beside is not None:
        assert beside.shape[-1] == columns
        assert beside.stride(-1) == 1
        beside_stride = beside.stride(0) if beside.ndim == 2 and len(beside) > 1 else 0
    parts: tuple[Tensor | Fp8Matrices, ...]
    parts = weight.parts if isinstance(weight, Stacked) else (weight,)
    block = min(COLUMNS, next_power_of_2(columns))
    block_rows, warps = _program(parts[0], rows, block)
    at = 0
    while parts:
        (one, *other), parts = parts[:2], parts[2:]
        given, format_name = stored(one)
        others, other_format = stored(other[0]) if other else (given, format_name)
        other_rows = len(other[0]) if other else 0
        here = out[:, at:]
        programs = cdiv(len(one), block_rows) + cdiv(other_rows, block_rows)
        _linear_step[(programs,)](
            x,
            x if beside is None else beside,
            given,
            others,
            x if bias is None else bias[at:],
            here,
            len(x),
            x.stride(0),
            beside_stride,
            here.stride(0),
            eps,
            ROWS=len(one),
            OTHER_ROWS=other_rows,
            COLUMNS=columns,
            FORMAT=format_name,
            OTHER_FORMAT=other_format,
            INPUT=input_name,
            BIASED=bias is not None,
            ADDED=added,
            ALONE=len(x) == 1,
            BR=block_rows,
            BC=block,
            num_warps=warps,
            **overlapping(x),
        )
        at += len(one) + other_rows


def _program(part: Tensor | Fp8Matrices, rows: int, block: int) -> tuple[int, int]:
    """Return the rows of a program and its warps: 16 KiB of weights, see README.md."""
    if INTERPRETED:
        return 128, 4  # many rows cost no more there
    if block > COLUMNS // 2:
        return 4, 8
    if isinstance(part, Tensor):
        return 4, 4
    return 8, 4 if rows > MANY_ROWS else 8
