"""What launchers are called with, and what comes back: tensors as they lie, in place too."""

import pytest
import torch
from interpreted import Caller, as_on, in_place_of, require_e4m3
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


@pytest.mark.parametrize(
    ("here", "with_fp8", "without"),
    [(80, None, 80), (86, None, 86), (89, 89, 86), (90, 90, 80), (100, 90, 80), (120, 120, 86)],
)
def test_on_hardware_a_test_for_another_chip_runs_what_that_hardware_can(
    here: int, with_fp8: int | None, without: int
) -> None:
    """An H100's tiles have more shared memory than an RTX has, an A100's more than an RTX 30."""
    assert in_place_of(90, here) == with_fp8
    assert in_place_of(80, here) == without


def test_what_needs_fp8_is_skipped_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = Caller(hardware=True, _run=lambda function, arguments: (function, arguments))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    require_e4m3(hardware)
    assert as_on(90, lambda: "called") == "called"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    with pytest.raises(pytest.skip.Exception, match="multiplies no FP8"):
        require_e4m3(hardware)
    with pytest.raises(pytest.skip.Exception, match="multiplies no FP8"):
        as_on(90, lambda: "called")
