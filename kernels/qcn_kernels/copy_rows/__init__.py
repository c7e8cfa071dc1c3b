"""Copy rows of a tensor to rows of another, which may lie elsewhere. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.copy_rows import reference


def copy_rows(source: Tensor, target: Tensor, rows: Tensor) -> None:
    """Copy rows of `source` to rows of `target`, as `reference.copy_rows`.

    With a target on a GPU the source lies there too, or in pinned host memory. Not waited for.

    Raises:
        ValueError: the source lies where the GPU does not see it.
    """
    if uses_triton(target):
        from qcn_kernels.copy_rows import triton

        triton.copy_rows(source, target, rows)
        return
    reference.copy_rows(source, target, rows)
