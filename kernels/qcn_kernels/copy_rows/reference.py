"""Rows by number, by torch."""

from torch import Tensor


def copy_rows(source: Tensor, target: Tensor, rows: Tensor) -> None:
    """Copy rows of one tensor to rows of another.

    Args:
        source: [R, ...] contiguous, of any dtype.
        target: [S, ...] contiguous, of the same dtype and inner shape.
        rows: [2, n] int64: numbers in `source`, and in `target`, where
            none stands twice.
    """
    target[rows[1]] = source[rows[0]]
