"""Rows by number, by torch."""

from torch import Tensor


def copy_rows(source: Tensor, target: Tensor, rows: Tensor) -> None:
    """Copy rows of one tensor to rows of another.

    Args:
        source: [R, ...] contiguous, of any dtype.
        target: [S, ...] contiguous, of the same dtype and inner shape.
        rows: [2, n] int64, on the target's device: numbers in `source`, and in `target`, where
            none stands twice.
    """
    numbers = rows.to(source.device)
    target[rows[1]] = source[numbers[0]].to(target.device)
