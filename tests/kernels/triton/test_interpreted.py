"""What launchers are called with, and what comes back: tensors as they lie, in place too."""

import torch
from interpreted import Caller
from torch import Tensor


def lies(x: Tensor, parts: tuple[Tensor, ...]) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """How a matrix lies, what stands behind its first row, and a view that does not end it."""
    x += 1
    return x.stride(), x.as_strided((5,), (1,), x.storage_offset() + x.shape[1]), parts[0].T[1:]


def test_tensors_keep_their_strides_and_what_stands_between(call: Caller) -> None:
    wide, part = torch.arange(40.0).view(4, 10), torch.randn(3, 6)[:, :4]
    strides, between, behind = call(lies, x=wide[:, 2:7], parts=(part,))
    assert strides == (10, 1)
    assert between.tolist() == [7, 8, 9, 10, 11]
    assert torch.equal(behind, part.T[1:])
    want = torch.arange(40.0).view(4, 10)
    want[:, 2:7] += 1
    assert torch.equal(wide, want)
