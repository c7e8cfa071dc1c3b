"""A kernel is launched as what was compiled for its arguments, and for no others."""

from typing import Any

import pytest
import torch
import triton
from qcn_kernels import launch
from qcn_kernels.launch import cdiv, next_power_of_2
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


class Compiled:
    """What Triton compiled: notes its launches."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[int, ...], tuple[object, ...]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args: self.launches.append((grid, args))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Compiled]:
    """All that is compiled from now on."""
    made: list[Compiled] = []

    def run(*_: object, **__: object) -> Compiled:
        made.append(Compiled())
        return made[-1]

    monkeypatch.setattr(triton.JITFunction, "run", run)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "current_device", lambda: 0)
    return made


def function(p_x: Any, p_pair: Any, count: Any, scale: Any, size: Any) -> None:
    """Never runs."""


def given(dtype: torch.dtype = torch.float32, offset: int = 0) -> Tensor:
    return torch.zeros(64, dtype=dtype)[offset:]


def test_what_is_known_is_launched_without_triton_looking_for_it(compiled: list[Compiled]) -> None:
    made = launch.kernel()(function)
    x, pair = given(), (given(), given(torch.bfloat16))
    for count in (32, 48):
        made[(3,)](x, pair, count, 0.5, size=16, num_warps=4)
    (first,) = compiled
    assert first.launches == [((3, 1, 1), (x, pair, 48, 0.5, 16))]  # the options are no arguments


@pytest.mark.parametrize(
    "other",
    [
        {"p_x": given(torch.bfloat16)},
        {"p_x": given(offset=1)},  # a pointer that is no multiple of 16
        {"p_pair": (given(), given(torch.float32))},
        {"p_pair": (given(),)},
        {"count": 33},
        {"count": 1},
        {"count": 1 << 31},
        {"scale": 2},  # an integer
        {"p_x": TensorDescriptor.from_tensor(torch.zeros(64, 64), [16, 32])},
        {"size": 32},
        {"num_warps": 8},
        {"num_stages": 3},
    ],
)
def test_what_triton_compiles_anew_for_is_not_taken_for_known(
    compiled: list[Compiled], other: dict[str, Any]
) -> None:
    made = launch.kernel()(function)
    usual = {"p_x": given(), "p_pair": (given(), given(torch.bfloat16)), "count": 32, "scale": 0.5}
    usual |= {"size": 16, "num_warps": 4}

    def launched(named: dict[str, Any]) -> None:
        args = [named.pop(name) for name in ("p_x", "p_pair", "count", "scale")]
        made[(1,)](*args, **named)

    launched(usual.copy())
    launched(usual | other)
    launched(usual.copy())
    first, second = compiled
    assert (len(first.launches), len(second.launches)) == (1, 0)


def test_a_descriptor_of_other_blocks_or_values_is_another(compiled: list[Compiled]) -> None:
    made = launch.kernel()(function)
    for dtype, block in ((torch.float32, 16), (torch.float32, 32), (torch.bfloat16, 16)) * 2:
        described = TensorDescriptor.from_tensor(given(dtype).view(8, 8), [8, block // 4])
        made[(1,)](described, (), 32, 0.5, size=16)
    assert [len(one.launches) for one in compiled] == [1, 1, 1]


def test_another_device_has_kernels_of_its_own(
    compiled: list[Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = launch.kernel()(function)
    made[(1,)](given(), (), 32, 0.5, size=16)
    monkeypatch.setattr(launch, "current_device", lambda: 1)
    made[(1,)](given(), (), 32, 0.5, size=16)
    assert len(compiled) == 2


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 1000, 1024, 1025])
def test_sizes_are_rounded_as_triton_rounds_them(n: int) -> None:
    assert next_power_of_2(n) == max(1, triton.next_power_of_2(n))
    assert [cdiv(n, size) for size in (1, 3, 64)] == [triton.cdiv(n, size) for size in (1, 3, 64)]
