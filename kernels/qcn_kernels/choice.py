"""Which implementation of an operation runs: its Triton kernel, or torch's operations on the CPU.

Tensors on a GPU take the kernels, all others the CPU's way. The exception is a process that
interprets kernels (TRITON_INTERPRET=1 in its environment from the start): there every operation
runs its kernel on the CPU's tensors, so that a whole model can be tested without a GPU.

No Triton here: where a kernel is not chosen, nothing imports it.
"""

import os

from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def uses_triton(x: Tensor) -> bool:
    """Whether an operation on x runs its Triton kernel."""
    return x.is_cuda or INTERPRETED
