"""What a launch of a Triton kernel must know of the chip. Only `triton.py` files import this.

Tuned for chips by name, never at run time: which configuration runs decides the order of a sum, and
so the last bits of a state that is kept. A chip that is not in a table takes the entry of the next
older one. For the same reason a count of tokens or chunks is never specialised: one program is
compiled for all of them. Triton also chooses layouts, and so the order of sums, by whether tensors
begin at multiples of 16 bytes: who needs equal bits keeps rows that do, as those of the models are.
"""

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

T = TypeVar("T")

CHIPS = (80, 86, 89, 90, 120)
"""Compute capabilities a configuration is shipped for: A100, RTX 30, RTX 40, H100/H200, RTX 50."""

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether this process interprets kernels (TRITON_INTERPRET=1 before triton was imported)."""

OPERAND: Any = tl.float32 if INTERPRETED else tl.bfloat16
"""Dtype of the operands of matrix products. The interpreter's bf16 products are wrong; its fp32
ones show the mathematics exactly, and hardware adds the rounding of operands to bf16."""
STORED_OPERAND = torch.float32 if INTERPRETED else torch.bfloat16
"""The same for tensors that hold operands."""
ALIGNED = 16
"""Elements. A stride or a width that is a multiple of it a kernel is compiled for as such: a thread
then moves 16 bytes at once, where else it moves element by element."""


def capability(x: Tensor) -> int:
    """Return the compute capability of x's device, 90 for 9.0; of an H100 under the interpreter."""
    return _capability_of(x.device) if x.is_cuda else 90


@functools.cache  # a pass asks a thousand times, and torch takes longer for it than for a view
def _capability_of(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def empty_rows(x: Tensor, columns: int) -> Tensor:
    """Return memory for as many rows as x has, of x's dtype: of columns rounded up to ALIGNED."""
    return x.new_empty(x.shape[0], -(-columns // ALIGNED) * ALIGNED)


def some_columns(x: Tensor, first: int, count: int) -> Tensor:
    """Return columns of a matrix: itself where they are all, since a view costs a call of torch."""
    return x if count == x.shape[1] else x.narrow(1, first, count)


MOST_STAGES_IN_FP32 = {80: 2, 86: 1, 90: 4, 120: 1}
"""For how many rounds of a loop there is shared memory of the shipped tiles in fp32. Of one round
nothing is copied ahead, and all of it passes through registers: compiled so for a 90, the delta
rule was wrong on an H200, but not without the optimisations of ptxas (12.8)."""


def stages(count: int, x: Tensor) -> int:
    """Return for how many rounds of a loop x finds shared memory: `count` is chosen for bf16."""
    return count if x.element_size() <= 2 else min(count, configuration(MOST_STAGES_IN_FP32, x))


def configuration(shipped: Mapping[int, T], x: Tensor) -> T:
    """Return the entry for x's chip, or for the next older one.

    Raises:
        RuntimeError: the chip is older than all of them.
    """
    chip = capability(x)
    known = [other for other in shipped if other <= chip]
    if not known:
        raise RuntimeError(
            f"this GPU has compute capability {chip / 10}; ours need {min(shipped) / 10} or newer."
            " Run the engine on the CPU instead."
        )
    return shipped[max(known)]
