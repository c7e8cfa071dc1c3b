"""Rows copied by a kernel, which reads pinned host memory over the link as if it were the GPU's."""

import torch
import triton.language as tl
from torch import Tensor

from qcn_kernels.launch import kernel

PROGRAMS = 64  # so many blocks of words are on their way at once: several times what a link holds
BLOCK = 1024


@kernel(do_not_specialize=["count"])
def _copy_rows(
    p_source,  # [R, words]
    p_target,  # [S, words]
    p_rows,  # [2, count] int64: which, and where to
    count,
    words,  # of a row
    BLOCK: tl.constexpr,
):
    """Each program copies the blocks of words whose number is its own, and so many further on."""
    blocks = tl.cdiv(words, BLOCK)
    for at in range(tl.program_id(0), count * blocks, tl.num_programs(0)):
        i_row, i_block = at // blocks, at % blocks
        source = tl.load(p_rows + i_row)
        target = tl.load(p_rows + count + i_row)
        o = i_block * BLOCK + tl.arange(0, BLOCK)
        inside = o < words
        b = tl.load(p_source + source * words + o, mask=inside)
        tl.store(p_target + target * words + o, b, mask=inside)


def copy_rows(source: Tensor, target: Tensor, rows: Tensor) -> None:
    """Copy as `reference.copy_rows`, `rows` on the target's device.

    Raises:
        ValueError: the source is host memory that is not pinned, which a GPU may not read.
    """
    assert source.is_contiguous()
    assert target.is_contiguous()
    assert rows.is_contiguous()
    assert source.dtype == target.dtype
    assert source.shape[1:] == target.shape[1:]
    if target.is_cuda and not source.is_cuda and not source.is_pinned():
        raise ValueError("rows of host memory that is not pinned cannot be copied by a GPU")
    row_bytes, count = target[0].nbytes, rows.shape[1]
    word = next(kind for kind in (torch.int64, torch.int32, torch.uint8) if _fits(kind, row_bytes))
    _copy_rows[(PROGRAMS,)](
        source.view(-1).view(word),
        target.view(-1).view(word),
        rows,
        count,
        row_bytes // word.itemsize,
        BLOCK=BLOCK,
        num_warps=4,
    )


def _fits(kind: torch.dtype, row_bytes: int) -> bool:
    return row_bytes % kind.itemsize == 0
