"""What groupwise codes stand for, written out in fp32."""

import torch
from torch import Tensor

TWICE_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12)  # OCP Microscaling Formats 1.0, section 5.3.3; bit 3: sign


def unpack(codes: Tensor) -> Tensor:
    """Return the 4-bit codes [..., columns] uint8 of bytes [..., columns / 2]."""
    pairs = codes.to(torch.int16)
    return ((pairs | (pairs << 4)) & 0x0F0F).view(torch.uint8)


def pack(codes: Tensor) -> Tensor:
    """Undo `unpack`: bytes [..., columns / 2] of 4-bit codes [..., columns] uint8."""
    pairs = _pairs(codes)
    return ((pairs | (pairs >> 4)) & 0xFF).to(torch.uint8)


def pack_halves(halves: Tensor) -> tuple[Tensor, Tensor]:
    """Pack codes in the low halves of bytes, and those in the high: [..., n] to [..., n / 2]."""
    pairs = _pairs(halves)
    low = (pairs & 0x0F) | ((pairs >> 4) & 0xF0)
    high = ((pairs >> 4) & 0x0F) | ((pairs >> 8) & 0xF0)
    return low.to(torch.uint8), high.to(torch.uint8)


def _pairs(x: Tensor) -> Tensor:
    """Read two bytes at a time; the copy is for those that begin at an odd place of a file."""
    return x.clone(memory_format=torch.contiguous_format).view(torch.int16)


def dequantise(
    *,
    codes: Tensor,
    scales: Tensor,
    mins: Tensor | None = None,
    block_scales: Tensor | None = None,
    block_mins: Tensor | None = None,
) -> Tensor:
    """Return the weights [..., rows, columns] in fp32; the parts are `GroupwiseMatrices`'s."""
    q = unpack(codes) if codes.dtype == torch.uint8 else codes
    if block_scales is None:
        values = (*TWICE_E2M1, *(-value for value in TWICE_E2M1))
        table = torch.tensor(values, dtype=torch.float32, device=q.device)
        levels, scale = table[q.int()], _half_power_of_two(scales)
    else:
        levels, scale = q.to(torch.float32), _in_units(scales, block_scales)
    groups = torch.unflatten(levels, -1, (scale.shape[-1], -1)).mul_(scale.unsqueeze(-1))
    if mins is not None and block_mins is not None:
        groups.sub_(_in_units(mins, block_mins).unsqueeze(-1))
    return groups.flatten(-2)


def _in_units(numbers: Tensor, units: Tensor) -> Tensor:
    """Return integers of groups [..., groups] times the floats of their blocks [..., blocks]."""
    blocks = torch.unflatten(numbers.to(torch.float32), -1, (units.shape[-1], -1))
    return blocks.mul_(units.to(torch.float32).unsqueeze(-1)).flatten(-2)


def _half_power_of_two(exponents: Tensor) -> Tensor:
    """Return 2^(e - 128) fp32 for E8M0's e, half of what it stands for, subnormal numbers too.

    e = 255, which the specification calls NaN, is 2^127: so it is in ggml.
    """
    e = exponents.int()
    return torch.where(e < 2, 0x0020_0000 << e.clamp(max=2), (e - 1) << 23).view(torch.float32)
