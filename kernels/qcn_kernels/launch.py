"""Launches of Triton kernels that cost the host little. Only `triton.py` files import this.

For every launch Triton looks at each argument and option anew to find what it has compiled for
such ones. A pass of few tokens is a thousand launches, and they take longer than the GPU's work.
So what was found is kept here by what Triton goes by (types, whether pointers and integers are
multiples of 16, the values of constants) and launched by Triton's own launcher.

That is given addresses in the place of tensors: of a tensor it asks for the address, a second time,
and then the driver whether it is one. The hooks by which profilers hear of launches are not called.

Sizes of grids and blocks come by `cdiv` and `next_power_of_2`: Triton's, called on the host, take
5 us each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import triton
from torch import Tensor
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from qcn_kernels.chip import INTERPRETED

_INT32 = 1 << 31
_NO_HOOKS = (None, None, None)  # what they would be told, at the beginning, at the end


class Kernel(triton.JITFunction):  # type: ignore[misc]
    """A kernel all of whose parameters are given in each launch: constants by name, others not."""

    def __init__(self, function: Callable[..., None], **named: Any) -> None:
        super().__init__(function, **named)
        self._known: dict[object, tuple[Any, tuple[object, ...]]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self.launch, grid)

    def launch(self, grid: tuple[int, ...], *args: Any, **named: Any) -> None:
        """Launch; as `JITFunction.run`, which finds or compiles what is not known yet."""
        active = driver.active
        device = active.get_current_device()
        seen: list[object] = [device, *named, *named.values()]
        given = _seen(args, seen)
        key = tuple(seen)
        known = self._known.get(key)
        if known is None:
            compiled = self.run(*args, grid=grid, warmup=False, **named)
            constants = tuple(named[name] for name in self.arg_names[len(args) :])
            self._known[key] = compiled, constants
            return
        compiled, constants = known
        about = (compiled.function, compiled.packed_metadata, *_NO_HOOKS)
        x, y, z = (*grid, 1, 1)[:3]
        compiled.run(x, y, z, active.get_current_stream(device), *about, *given, *constants)


class _GluonKernel(Kernel, GluonJITFunction):  # type: ignore[misc]
    """The same, written in Gluon."""


def _seen(args: tuple[Any, ...], into: list[object]) -> list[object]:
    """Add what Triton compiles for; return what its launcher is given.

    Where a tensor lies is a part of it. One that is not on a GPU is known only if one in pinned
    memory was launched with before: who does that refuses others, as `copy_rows`.
    """
    given: list[object] = []
    for value in args:
        if isinstance(value, Tensor):
            address = value.data_ptr()
            into += (value.dtype, value.is_cuda, address & 15)
            value = address
        elif isinstance(value, int):
            into += (value == 1, value & 15, -_INT32 <= value < _INT32)
        elif isinstance(value, TensorDescriptor | GluonDescriptor):
            into += (type(value), value.base.dtype, *value.block_shape)
        elif isinstance(value, tuple):
            into.append(len(value))
            value = tuple(_seen(value, into))
        else:
            into.append(type(value))
        given.append(value)
    return given


def kernel(**named: Any) -> Callable[[Callable[..., None]], Any]:
    """Make a kernel of a function, as `triton.jit` does: `@kernel(do_not_specialize=[...])`."""
    if INTERPRETED:
        return triton.jit(**named)  # type: ignore[no-any-return]
    return lambda function: Kernel(function, **named)


def gluon_kernel(**named: Any) -> Callable[[Callable[..., None]], Any]:
    """Make a kernel of a function in Gluon, which nothing interprets."""
    return lambda function: _GluonKernel(function, **named)


def cdiv(a: int, b: int) -> int:
    """Divide, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the least power of 2 that is not below n, 1 for none."""
    return 1 << max(0, n - 1).bit_length()
