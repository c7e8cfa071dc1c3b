"""Launches of Triton kernels that cost the host little. Only `triton.py` files import this.

For every launch Triton looks at each argument and option anew to find what it has compiled for
such ones. A pass of few tokens is a thousand launches, and they take longer than the GPU's work.
So what was found is kept here by what Triton goes by (types, whether pointers and integers are
multiples of 16, the values of constants) and launched by Triton's own launcher.

Sizes of grids and blocks come by `cdiv` and `next_power_of_2`: Triton's, called on the host, take
5 us each.
"""

from collections.abc import Callable
from typing import Any

import triton
from torch import Tensor
from torch.cuda import current_device
from triton.tools.tensor_descriptor import TensorDescriptor

from qcn_kernels.chip import INTERPRETED

_INT32 = 1 << 31


class Kernel(triton.JITFunction):  # type: ignore[misc]
    """A kernel all of whose parameters are given in each launch: constants by name, others not."""

    def __init__(self, function: Callable[..., None], **named: Any) -> None:
        super().__init__(function, **named)
        self._known: dict[object, tuple[Any, tuple[object, ...]]] = {}

    def run(self, *args: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> Any:
        """Launch; as `JITFunction.run`, which finds or compiles what is not known yet."""
        key = (current_device(), _specialised(args), *named, *named.values())
        known = self._known.get(key)
        if warmup or known is None:
            compiled = super().run(*args, grid=grid, warmup=warmup, **named)
            constants = tuple(named[name] for name in self.arg_names[len(args) :])
            self._known[key] = compiled, constants
            return compiled
        compiled, constants = known
        compiled[(*grid, 1, 1)[:3]](*args, *constants)
        return compiled


def _specialised(args: tuple[Any, ...]) -> tuple[object, ...]:
    """What Triton compiles for."""
    found: list[object] = []
    for value in args:
        if isinstance(value, Tensor):
            found += (value.dtype, value.data_ptr() & 15)
        elif isinstance(value, int):
            found += (value == 1, value & 15, -_INT32 <= value < _INT32)
        elif isinstance(value, TensorDescriptor):
            found += (value.base.dtype, *value.block_shape)
        else:
            found.append(_specialised(value) if isinstance(value, tuple) else type(value))
    return tuple(found)


def kernel(**named: Any) -> Callable[[Callable[..., None]], Any]:
    """Make a kernel of a function, as `triton.jit` does: `@kernel(do_not_specialize=[...])`."""
    if INTERPRETED:
        return triton.jit(**named)  # type: ignore[no-any-return]
    return lambda function: Kernel(function, **named)


def cdiv(a: int, b: int) -> int:
    """Divide, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the least power of 2 that is not below n, 1 for none."""
    return 1 << max(0, n - 1).bit_length()
