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

import torch
import triton

from qcn_kernels.chip import INTERPRETED

_INT32 = 1 << 31


class _Kernel(triton.JITFunction):  # type: ignore[misc]
    """A kernel all of whose parameters are given in each launch."""

    def __init__(self, function: Callable[..., None], **named: Any) -> None:
        super().__init__(function, **named)
        self._known: dict[tuple[object, ...], Any] = {}
        self._constants = frozenset(self.constexprs)

    def run(self, *args: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> Any:
        """Launch; as `JITFunction.run`, which finds or compiles what is not known yet."""
        if warmup:
            return super().run(*args, grid=grid, warmup=warmup, **named)
        values = [*args, *(named[name] for name in self.arg_names[len(args) :])]
        key: list[object] = [torch.cuda.current_device(), *named.values(), *named]
        for at, value in enumerate(args):
            if at not in self._constants:
                _specialised(value, key)
            else:
                key.append(value)
        known = self._known.get(tuple(key))
        if known is None:
            known = super().run(*args, grid=grid, warmup=warmup, **named)
            self._known[tuple(key)] = known
        else:
            known[(*grid, 1, 1)[:3]](*values)
        return known


def _specialised(value: Any, key: list[object]) -> None:
    """Add to a key what Triton compiles for."""
    if isinstance(value, torch.Tensor):
        key += (value.dtype, value.data_ptr() & 15)
    elif type(value) is int:
        key += (value == 1, value & 15, -_INT32 <= value < _INT32)
    elif isinstance(value, tuple):
        for part in value:
            _specialised(part, key)
    else:
        key.append(type(value))


def kernel(**named: Any) -> Callable[[Callable[..., None]], Any]:
    """Make a kernel of a function, as `triton.jit` does: `@kernel(do_not_specialize=[...])`."""
    if INTERPRETED:
        return triton.jit(**named)  # type: ignore[no-any-return]
    return lambda function: _Kernel(function, **named)


def cdiv(a: int, b: int) -> int:
    """Divide, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the least power of 2 that is not below n, 1 for none."""
    return 1 << max(0, n - 1).bit_length()
