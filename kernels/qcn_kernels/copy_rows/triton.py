"""Rows copied by a kernel, which reads pinned host memory over the link as if it were the GPU's."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels.launch import kernel

PROGRAMS = 64  # so many blocks of words are on their way at once: several times what a link holds
BLOCK = 1024


@triton.jit
def _copy_part(p_source, p_target, p_rows, count, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    blocks = tl.cdiv(WORDS, BLOCK)
    for at in range(tl.program_id(0), count * blocks, tl.num_programs(0)):
        i_row, i_block = at // blocks, at % blocks
        source = tl.load(p_rows + i_row)
        if source >= 0:
            target = tl.load(p_rows + count + i_row)
            o = i_block * BLOCK + tl.arange(0, BLOCK)
            inside = o < WORDS
            b = tl.load(p_source + source * WORDS + o, mask=inside)
            tl.store(p_target + target * WORDS + o, b, mask=inside)


@kernel(do_not_specialize=["count"])
def _copy_rows(
    sources,  # each [R, words]
    targets,  # each [S, words]
    p_rows,  # [2, count] int64: which, and where to
    count,
    WORDS: tl.constexpr,  # of a row, for each
    BLOCK: tl.constexpr,
):
    """Each program copies the blocks of words whose number is its own, and so many further on."""
    for part in tl.static_range(len(WORDS)):
        _copy_part(sources[part], targets[part], p_rows, count, WORDS[part], BLOCK)


def copy_rows(sources: Sequence[Tensor], targets: Sequence[Tensor], rows: Tensor) -> None:
    """Copy as `reference.copy_rows`, `rows` on the targets' device.

    Raises:
        ValueError: a source is host memory that is not pinned, which a GPU may not read.
    """
    assert rows.is_contiguous()
    words = [_word(source, target) for source, target in zip(sources, targets, strict=True)]
    _copy_rows[(PROGRAMS,)](
        tuple(source.view(-1).view(word) for source, word in zip(sources, words, strict=True)),
        tuple(target.view(-1).view(word) for target, word in zip(targets, words, strict=True)),
        rows,
        rows.shape[1],
        WORDS=tuple(
            source[0].nbytes // word.itemsize for source, word in zip(sources, words, strict=True)
        ),
        BLOCK=BLOCK,
        num_warps=4,
    )


def _word(source: Tensor, target: Tensor) -> torch.dtype:
    """The widest kind of integer of which a row is a multiple."""
    assert source.is_contiguous()
    assert target.is_contiguous()
    assert source.dtype == target.dtype
    assert source.shape[1:] == target.shape[1:]
    if target.is_cuda and not source.is_cuda and not source.is_pinned():
        raise ValueError("rows of host memory that is not pinned cannot be copied by a GPU")
    row_bytes = source[0].nbytes
    return next(
        kind for kind in (torch.int64, torch.int32, torch.uint8) if row_bytes % kind.itemsize == 0
    )
