"""GGUF's tensor types: which bytes hold which code, and the same codes in our layout, without loss.

Written from the layouts in ggml (`ggml-common.h`) and in the `gguf` package, which is the oracle of
the tests. A row is a sequence of blocks; a block holds its scales in front of or behind its codes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from qcn_kernels.groupwise import GroupwiseMatrices, pack_halves
from torch import Tensor

ROWS_AT_ONCE = 1 << 24  # elements dequantised at a time: the fp32 in between stays small


@dataclass(frozen=True, slots=True)
class TensorType:
    """How a type lays out a row; `repack` is None where elements are plain floats."""

    name: str
    elements: int  # of a block
    size: int  # bytes of a block
    dtype: torch.dtype | None = None
    repack: Callable[[Tensor, torch.dtype], GroupwiseMatrices] | None = None


def to_matrices(data: Tensor, kind: TensorType, dtype: torch.dtype) -> GroupwiseMatrices:
    """Repack quantised matrices.

    Args:
        data: [count, rows, bytes of a row] uint8.
        kind: of a quantised type.
        dtype: of the products that will be made with them.
    """
    assert kind.repack is not None
    return kind.repack(torch.unflatten(data, -1, (-1, kind.size)), dtype)


def to_floats(data: Tensor, kind: TensorType) -> Tensor:
    """Return [rows, columns] in the type's own float dtype, or in fp32 where it is quantised.

    Args:
        data: [rows, bytes of a row] uint8.
        kind: any type.
    """
    if kind.dtype is not None:
        return data.view(kind.dtype)
    columns = data.shape[-1] // kind.size * kind.elements
    out = torch.empty(len(data), columns)
    at_once = max(1, ROWS_AT_ONCE // columns)
    for part, rows in zip(torch.split(out, at_once), torch.split(data, at_once), strict=True):
        part.copy_(to_matrices(rows.unsqueeze(0), kind, torch.float32)[0])
    return out


# Each takes blocks [count, rows, blocks, bytes] uint8.


def _q8_0(blocks: Tensor, dtype: torch.dtype) -> GroupwiseMatrices:
    """Symmetric groups of 32: one fp16 scale, signed bytes."""
    scales = _halves(blocks[..., :2])
    codes = blocks[..., 2:].flatten(-2).view(torch.int8)
    ones = torch.ones_like(scales, dtype=torch.uint8)
    return GroupwiseMatrices(codes, ones, None, scales, None, dtype)


def _q4_k(blocks: Tensor, dtype: torch.dtype) -> GroupwiseMatrices:
    """Eight groups of 32; 32 bytes hold a group in their low halves and the next in their high."""
    scales, mins = _six_bit_scales(blocks[..., 4:16])
    pairs = torch.unflatten(blocks[..., 16:], -1, (4, 32))
    codes = torch.stack(pack_halves(pairs), dim=-2).flatten(-4)
    return GroupwiseMatrices(
        codes, scales, mins, _halves(blocks[..., :2]), _halves(blocks[..., 2:4]), dtype
    )


def _q5_k(blocks: Tensor, dtype: torch.dtype) -> GroupwiseMatrices:
    """As Q4_K, with the fifth bits of group i in bit i of 32 bytes."""
    scales, mins = _six_bit_scales(blocks[..., 4:16])
    pairs = torch.unflatten(blocks[..., 48:], -1, (4, 1, 32))
    low = torch.cat((pairs & 15, pairs >> 4), dim=-2).flatten(-3, -2)  # [..., 8, 32]
    bits = torch.arange(8, dtype=torch.uint8).unsqueeze(1)
    fifth = (blocks[..., 16:48].unsqueeze(-2) >> bits) & 1
    codes = (low | (fifth << 4)).flatten(-3).view(torch.int8)
    return GroupwiseMatrices(
        codes, scales, mins, _halves(blocks[..., :2]), _halves(blocks[..., 2:4]), dtype
    )


def _q6_k(blocks: Tensor, dtype: torch.dtype) -> GroupwiseMatrices:
    """Symmetric groups of 16 with signed scales; two halves of 128, each in quarters of 32.

    Of a half, 64 bytes hold the low four bits of quarters 0 and 1 below those of 2 and 3, and 32
    bytes the high two bits of all quarters, 0 lowest.
    """
    low = torch.unflatten(blocks[..., :128], -1, (2, 1, 2, 32))
    low = torch.cat((low & 15, low >> 4), dim=-3).flatten(-3, -2)  # [..., 2, 4, 32]
    high = torch.unflatten(blocks[..., 128:192], -1, (2, 1, 32))
    high = (high >> torch.tensor([[0], [2], [4], [6]], dtype=torch.uint8)) & 3
    codes = (low | (high << 4)).flatten(-4).view(torch.int8) - 32
    scales = blocks[..., 192:208].flatten(-2).view(torch.int8)
    return GroupwiseMatrices(codes, scales, None, _halves(blocks[..., 208:]), None, dtype)


def _mxfp4(blocks: Tensor, dtype: torch.dtype) -> GroupwiseMatrices:
    """Groups of 32: an exponent, and 16 bytes with the first 16 codes in their low halves."""
    exponents, halves = blocks[..., 0].contiguous(), blocks[..., 1:]
    codes = torch.cat(pack_halves(halves), dim=-1).flatten(-2)
    return GroupwiseMatrices(codes, exponents, None, None, None, dtype)


def _halves(pairs: Tensor) -> Tensor:
    """Read fp16 numbers from [..., 2] bytes."""
    return pairs.contiguous().view(torch.float16).squeeze(-1)


def _six_bit_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return scales and mins [..., blocks · 8] uint8 of a block's 12 bytes.

    The first four scales and mins stand in the low six bits of bytes 0-3 and 4-7; the last four
    have their low bits in the halves of bytes 8-11 and their high two bits above the first four.
    """
    first, second, third = torch.unflatten(packed, -1, (3, 4)).unbind(-2)
    scales = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), dim=-1)
    mins = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=-1)
    return scales.flatten(-2), mins.flatten(-2)


TYPES = {
    0: TensorType("F32", 1, 4, torch.float32),
    1: TensorType("F16", 1, 2, torch.float16),
    8: TensorType("Q8_0", 32, 34, repack=_q8_0),
    12: TensorType("Q4_K", 256, 144, repack=_q4_k),
    13: TensorType("Q5_K", 256, 176, repack=_q5_k),
    14: TensorType("Q6_K", 256, 210, repack=_q6_k),
    30: TensorType("BF16", 1, 2, torch.bfloat16),
    39: TensorType("MXFP4", 32, 17, repack=_mxfp4),
}
"""By their number in the file."""
