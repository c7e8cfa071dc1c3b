"""Our own 4-bit codes: rounding to nearest in groups of 32, each with the range that fits it best.

The layout is Q4_K's (a scale and a subtracted minimum for every group, in units of one float per
block), with 8 bits instead of 6 for both. For each group several ranges are tried, from the full
one to one that cuts off its extremes; for the codes of each, the scale and minimum of least squared
error follow in closed form, and the best pair is kept. Nothing but the weights is needed: no
calibration text, no order in which layers are treated, so conversion can stop and go on anywhere.
"""

import torch
from torch import Tensor

from qcn_kernels.groupwise.matrices import GroupwiseMatrices, concatenate
from qcn_kernels.groupwise.reference import pack

GROUP = 32
BLOCK = 256  # columns; or the largest part of it by a power of two that divides them
LEVELS = 15
RANGES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of a group's span
TINY = 1e-30  # what is divided by instead of 0
AT_ONCE = 1 << 15  # weights: few enough for the cache, and for torch to use one thread


def quantise(weights: Tensor, dtype: torch.dtype) -> GroupwiseMatrices:
    """Quantise a matrix to 4 bits; 4.63 bits a weight with the scales, for blocks of 256.

    Args:
        weights: [rows, columns], any float dtype; columns are a multiple of 32.
        dtype: of the products that will be made with it.

    Returns:
        A stack of one matrix.
    """
    columns = weights.shape[1]
    if columns % GROUP:
        raise ValueError(f"{columns} columns are not a multiple of {GROUP}")
    parts = torch.split(weights, max(1, AT_ONCE // columns))
    return concatenate([_quantise(part.to(torch.float32), dtype) for part in parts], dim=1)


def _quantise(weights: Tensor, dtype: torch.dtype) -> GroupwiseMatrices:
    rows, columns = weights.shape
    block = BLOCK
    while columns % block:
        block //= 2
    # Elements of a group first: the many groups then lie side by side in every operation.
    groups = weights.view(-1, GROUP).T.contiguous()
    scale, low = _best_fit(groups)
    scales, block_scales = _in_units(scale.view(rows, -1, block // GROUP))
    mins, block_mins = _in_units(-low.view(rows, -1, block // GROUP))
    used = (scales * block_scales.to(torch.float32)).flatten().clamp_(min=TINY)
    subtracted = (mins * block_mins.to(torch.float32)).flatten()
    codes = _rounded(groups.add_(subtracted), used).to(torch.uint8).T.reshape(1, rows, columns)
    return GroupwiseMatrices(
        codes=pack(codes),
        scales=scales.to(torch.uint8).view(1, rows, -1),
        mins=mins.to(torch.uint8).view(1, rows, -1),
        block_scales=block_scales.view(1, rows, -1),
        block_mins=block_mins.view(1, rows, -1),
        dtype=dtype,
    )


def _best_fit(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each group [32, n] the scale and the value of code 0, which is at most 0."""
    low, high, mean = groups.amin(0).clamp_(max=0), groups.amax(0).clamp_(min=0), groups.mean(0)
    best = torch.full_like(low, torch.inf)
    best_scale, best_low = torch.zeros_like(low), torch.zeros_like(low)
    for part in RANGES:
        first = low * part
        q = _rounded(groups - first, ((high - low) * (part / LEVELS)).clamp_(min=TINY))
        scale, offset = _least_squares(q, groups, mean)
        error = (q * scale).add_(offset).sub_(groups).square_().sum(0)
        better = error < best
        best = torch.where(better, error, best)
        best_scale = torch.where(better, scale, best_scale)
        best_low = torch.where(better, offset, best_low)
    return best_scale, best_low


def _rounded(above: Tensor, scale: Tensor) -> Tensor:
    return above.div(scale).round_().clamp_(0, LEVELS)


def _least_squares(q: Tensor, groups: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and offset of the least squared error of scale · q + offset.

    Where the offset would be above 0 it is 0, and the scale the best one through it; so it is where
    all codes are alike, which have no slope.
    """
    q_mean = q.mean(0)
    squares, products = (q * q).mean(0), (q * groups).mean(0)
    variance = squares - q_mean * q_mean  # 0.03 at the least where one of 32 differs
    through_zero = products / squares.clamp(min=TINY)
    slope = (products - q_mean * mean) / variance.clamp(min=TINY)
    scale = torch.where(variance < 0.01, through_zero, slope)
    offset = mean - scale * q_mean
    scale = torch.where(offset > 0, through_zero, scale)
    return scale.clamp_(min=0), offset.clamp_(max=0)


def _in_units(values: Tensor) -> tuple[Tensor, Tensor]:
    """Write values [..., n] of at least 0 as integers up to 255 times a unit [..., 1].

    The unit is bf16: in fp16 those of usual weights, some 1e-5, would be subnormal.
    """
    exact = values.amax(-1, keepdim=True) / 255
    units = exact.to(torch.bfloat16)
    # Rounded up, lest the largest need 256 units.
    above = torch.nextafter(units, units.new_tensor(torch.inf))
    units = torch.where(units.to(torch.float32) < exact, above, units)
    numbers = values / units.to(torch.float32).clamp_(min=TINY)
    return numbers.round_().clamp_(0, 255), units
