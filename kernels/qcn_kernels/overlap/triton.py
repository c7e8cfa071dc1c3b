"""Launches that begin while the one in front of them still runs (programmatic dependent launch).

A decoding step is a chain of kernels of a few microseconds, and of each a part is spent on being
launched, on the first bytes' way from memory, and on the last programs' end. From compute
capability 9.0 on a kernel may begin as soon as all programs of the one in front of it have begun
and there is room: it then loads its weights while the other computes what it multiplies them by.
A CUDA graph keeps such an edge.

What makes it sound, and holds for every kernel that is launched with `overlapping`:

- Each of its programs calls `await_previous` before it reads or writes anything that a kernel
  reads or writes. Before that it loads **weights only**, which nothing writes once they are there;
  all else it may only `prefetch`, which is a hint and leaves no value.
- Before the first such launch the host has waited for all that writes weights: a model that is
  loaded has. Experts that are copied to slots later are read behind `await_previous` alone, for
  which are wanted is computed by the launch in front.
- `await_previous` returns when the launch in front has ended and what it wrote is visible. That
  launch has itself awaited the one before: so all of them have ended, and no memory that is used
  again is overwritten too early.
- Every other kernel and copy, torch's among them, begins when all in front of it has ended, and so
  does what is launched behind it.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from qcn_kernels import chip
from qcn_kernels.chip import INTERPRETED

OVERLAPS = 90  # the first compute capability that does


def overlapping(x: Tensor) -> dict[str, Any]:
    """Return what a launch on x's device is given, beside its arguments, so that it overlaps."""
    if INTERPRETED or chip.capability(x) < OVERLAPS:
        return {"OVERLAPS": False}
    return {"OVERLAPS": True, "launch_pdl": True}


@triton.jit
def let_next_begin(OVERLAPS: tl.constexpr):
    """Let the next launch begin when all programs of this one have come here."""
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def await_previous(OVERLAPS: tl.constexpr):
    """Wait until all launches in front have ended."""
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()


@triton.jit
def prefetch(p, BYTES: tl.constexpr, OVERLAPS: tl.constexpr):
    """Have BYTES from each of some pointers brought to L2: a hint, where all are whole 16s."""
    if OVERLAPS and BYTES % 16 == 0:
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0;",
            "=r,l,r",
            [p.to(tl.int64), tl.full(p.shape, BYTES, tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
