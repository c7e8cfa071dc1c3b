"""Rows by number, by torch."""

from collections.abc import Sequence

from torch import Tensor


def copy_rows(sources: Sequence[Tensor], targets: Sequence[Tensor], rows: Tensor) -> None:
    """Copy the same rows of tensors to rows of others.

    Args:
        sources: each [R, ...] contiguous, of any dtype.
        targets: one for each, [S, ...] contiguous, of the same dtype and inner shape.
        rows: [2, n] int64: numbers in a source, and in its target, where none stands twice.
            Pairs of negative numbers are left out.
    """
    start, end = rows[:, rows[0] >= 0]
    for source, target in zip(sources, targets, strict=True):
        target[end] = source[start]
