"""What groupwise codes stand for, written out in fp32."""

import torch
from torch import Tensor

TWICE_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12)  # OCP Microscaling Formats 1.0, section 5.3.3; bit 3: sign


def unpack(codes: Tensor) -> Tensor:
    """Return the 4-bit codes [..., columns] uint8 of bytes [..., columns / 2]."""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)


def pack(codes: Tensor) -> Tensor:
    """Undo `unpack`: bytes [..., columns / 2] of 4-bit codes [..., columns] uint8."""
    return codes[..., ::2] | (codes[..., 1::2] << 4)


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
        values = torch.tensor((*TWICE_E2M1, *(-value for value in TWICE_E2M1)), dtype=torch.float32)
        return _scaled(values[q.int()], _half_power_of_two(scales))
    weights = _scaled(q.to(torch.float32), _scaled(scales.to(torch.float32), block_scales))
    if mins is None or block_mins is None:
        return weights
    subtracted = _scaled(mins.to(torch.float32), block_mins)
    return weights - subtracted.repeat_interleave(q.shape[-1] // mins.shape[-1], dim=-1)


def _half_power_of_two(exponents: Tensor) -> Tensor:
    """Return 2^(e - 128) fp32 for E8M0's e, half of what it stands for, subnormal numbers too.

    e = 255, which the specification calls NaN, is 2^127: so it is in ggml.
    """
    e = exponents.int()
    return torch.where(e < 2, 0x0020_0000 << e.clamp(max=2), (e - 1) << 23).view(torch.float32)


def _scaled(x: Tensor, factors: Tensor) -> Tensor:
    """Multiply the columns of x by one factor for each run of equally many."""
    runs = torch.unflatten(x, -1, (factors.shape[-1], -1))
    return (runs * factors.to(torch.float32).unsqueeze(-1)).flatten(-2)
