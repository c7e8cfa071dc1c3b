"""Rows go where they are told to, whatever their width, and nothing else is written."""

import pytest
import torch
from interpreted import Caller
from qcn_kernels.copy_rows import reference
from qcn_kernels.copy_rows.triton import copy_rows
from torch import Tensor

SHAPES: list[tuple[tuple[int, ...], torch.dtype]] = [
    ((1025, 3), torch.int64),  # more than a block of words, and not a multiple
    ((130, 8), torch.bfloat16),
    ((7,), torch.float32),  # words of 4 bytes
    ((3, 5), torch.uint8),
]


def copied(rows: Tensor, **parts: Tensor) -> None:
    """Sources and their targets in turns: what is written in place must be an argument."""
    both = list(parts.values())
    copy_rows(both[::2], both[1::2], rows)


def test_rows_are_copied_and_others_stay(call: Caller) -> None:
    """Of tensors of different widths at once; pairs without a number are left out."""

    def drawn(rows: int) -> list[Tensor]:
        return [torch.randint(-100, 100, (rows, *shape)).to(dtype) for shape, dtype in SHAPES]

    sources, targets = drawn(9), drawn(70)
    rows = torch.stack((torch.tensor([8, 0, 3, -1, -1]), torch.randperm(70)[:5]))
    rows[1, 3:] = -1
    want = [target.clone() for target in targets]
    reference.copy_rows(sources, want, rows)
    both = zip(sources, targets, strict=True)
    call(copied, rows=rows, **{f"part_{at}": part for at, part in enumerate(sum(both, ()))})
    for target, expected in zip(targets, want, strict=True):
        assert torch.equal(target, expected)


@pytest.mark.gpu
def test_a_gpu_reads_them_from_pinned_host_memory() -> None:
    """Known by its kind of memory: what is not pinned is refused, also behind what was."""
    source = torch.randn(500, 4096).pin_memory()
    target = torch.zeros(300, 4096, device="cuda")
    rows = torch.stack((torch.randperm(500)[:200], torch.randperm(300)[:200]))
    want = target.cpu()
    want[rows[1]] = source[rows[0]]
    for _ in range(2):
        copy_rows([source], [target], rows.cuda())
    assert torch.equal(target.cpu(), want)
    with pytest.raises(ValueError, match="not pinned"):
        copy_rows([torch.randn(500, 4096)], [target], rows.cuda())


@pytest.mark.gpu
def test_rows_beyond_2_gib_are_found() -> None:
    """[3 · 2**30] bytes in the host's memory and on the GPU."""
    source = torch.zeros(3072, 1 << 20, dtype=torch.uint8, pin_memory=True)
    source[3071] = 7
    target = torch.zeros(3072, 1 << 20, dtype=torch.uint8, device="cuda")
    rows: Tensor = torch.tensor([[3071], [3070]], device="cuda")
    copy_rows([source], [target], rows)
    assert target[3070].eq(7).all()
    assert not target[:3070].any()
