"""Copy rows of tensors to rows of others, which may lie elsewhere. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

from collections.abc import Sequence

from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.copy_rows import reference


def copy_rows(sources: Sequence[Tensor], targets: Sequence[Tensor], rows: Tensor) -> None:
    """Copy rows of each source to rows of its target, as `reference.copy_rows`.

    With targets on a GPU the sources lie there too, or in pinned host memory. Not waited for.

    Raises:
        ValueError: a source lies where the GPU does not see it.
    """
    if uses_triton(rows):
        from qcn_kernels.copy_rows import triton

        triton.copy_rows(sources, targets, rows)
        return
    reference.copy_rows(sources, targets, rows)
