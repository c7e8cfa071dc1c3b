"""Rotary position embedding (arXiv 2104.09864), half-rotation form, of the first dimensions."""

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, *, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return the cosine and the signed sine for each position.

    Args:
        positions: [T] integers.
        rotary_dim: dimensions that turn, even; dimension i turns with dimension i + rotary_dim / 2.
        theta: base of the wavelengths.

    Returns:
        cos, sin: [T, rotary_dim] fp32; sin is negative in its first half, so that
        `x · cos + swap_halves(x) · sin` is the rotation.
    """
    turns = frequencies(rotary_dim, theta, positions.device)
    angles = positions.float().unsqueeze(-1) * turns
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def frequencies(rotary_dim: int, theta: float, device: torch.device) -> Tensor:
    """Return by how much each pair of dimensions turns from one position to the next, fp32."""
    steps = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device)
    return 1.0 / theta ** (steps / rotary_dim)


def apply_rotary(x: Tensor, *, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first `rotary_dim` dimensions of x in place and return x.

    Args:
        x: [..., head_dim] fp32.
        cos, sin: [..., rotary_dim] fp32 from `rotary_tables`, broadcast to x.
    """
    rotary_dim = cos.shape[-1]
    turning = x[..., :rotary_dim]
    swapped = turning.roll(rotary_dim // 2, dims=-1)
    turning.mul_(cos).addcmul_(swapped, sin)
    return x
