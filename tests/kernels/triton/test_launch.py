"""A kernel is launched as what was compiled for its arguments, and for no others."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from qcn_kernels import launch
from qcn_kernels.launch import cdiv, next_power_of_2
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor


class Compiled:
    """What Triton compiled: notes what its launcher is given."""

    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.launches: list[tuple[object, ...]] = []

    def run(self, *args: object) -> None:
        self.launches.append(args)

    # What Triton asks of it besides, to launch it.

    def launch_metadata(self, *_: object) -> None:
        pass

    def _init_handles(self) -> None:
        pass


class OnGpu(Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Compiled]:
    """All that is compiled from now on."""
    made: list[Compiled] = []

    def run(*_: object, **__: object) -> Compiled:
        made.append(Compiled())
        return made[-1]

    monkeypatch.setattr(triton.JITFunction, "run", run)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    use_device(monkeypatch, 0)
    return made


def use_device(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    active = SimpleNamespace(
        get_current_device=lambda: number, get_current_stream=lambda device: 70 + device
    )
    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=active))


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
    pointers = x.data_ptr(), tuple(each.data_ptr() for each in pair)
    about = 70, "function", "metadata", None, None, None
    assert first.launches == [(3, 1, 1, *about, *pointers, 48, 0.5, 16)]  # options are no arguments


def test_a_launcher_is_given_what_triton_gives_it(compiled: list[Compiled]) -> None:
    """But for hooks, and addresses instead of tensors."""
    made = launch.kernel()(function)
    x = given()
    for _ in range(2):
        made[(3, 5)](x, (), 48, 0.5, size=16)
    CompiledKernel.__getitem__(compiled[0], (3, 5, 1))(x, (), 48, 0.5, 16, stream=70)
    (*place, _, _, _, address, no_pair, count, scale, size), theirs = compiled[0].launches
    assert theirs[:6] == tuple(place)
    assert theirs[9:] == (x, no_pair, count, scale, size)
    assert address == x.data_ptr()


@pytest.mark.parametrize(
    "other",
    [
        {"p_x": given(torch.bfloat16)},
        {"p_x": given(offset=1)},  # a pointer that is no multiple of 16
        {"p_x": given().as_subclass(OnGpu)},  # or was one, and is on the CPU now
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
    use_device(monkeypatch, 1)
    made[(1,)](given(), (), 32, 0.5, size=16)
    assert len(compiled) == 2


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 1000, 1024, 1025])
def test_sizes_are_rounded_as_triton_rounds_them(n: int) -> None:
    assert next_power_of_2(n) == max(1, triton.next_power_of_2(n))
    assert [cdiv(n, size) for size in (1, 3, 64)] == [triton.cdiv(n, size) for size in (1, 3, 64)]
