"""What a machine has: memories, and how fast it reads, copies and multiplies, as measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from qcn_inference.device import memory

MIB = 2**20
MEASURED_BYTES = 256 * MIB  # more than caches hold
SIDE = 2048  # of the matrices that are multiplied
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as far as a plan needs it."""

    name: str
    free_bytes: int
    bandwidth: float  # bytes read per second
    rate: float  # floating-point operations per second, products of bf16 matrices
    link: float  # bytes per second from pinned host memory


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with at most one GPU that counts."""

    free_bytes: int  # of host memory
    bandwidth: float  # bytes the CPU reads per second
    rate: float  # floating-point operations of the CPU per second, products of bf16 matrices
    gpu: Gpu | None = None


def measure(device: torch.device | None = None) -> Machine:
    """Look at this machine; takes a second or two.

    Args:
        device: the GPU that counts; None takes torch's current one, if there is any.

    Raises:
        RuntimeError: the GPU does not work, by torch's words.
    """
    if device is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    gpu = _gpu(device) if device is not None and device.type == "cuda" else None
    data = torch.ones(MEASURED_BYTES // 4)
    return Machine(
        free_bytes=psutil.virtual_memory().available,
        bandwidth=MEASURED_BYTES / _least_seconds(data.sum, _nothing),
        rate=_rate("cpu", _nothing),
        gpu=gpu,
    )


def _gpu(device: torch.device) -> Gpu:
    free, _ = memory(device)
    size = min(MEASURED_BYTES, free // 8)
    data = torch.ones(size // 4, device=device)
    target = torch.empty_like(data)
    pinned = torch.empty(size // 4, pin_memory=True)

    def wait() -> None:
        torch.cuda.synchronize(device)

    copied = _least_seconds(lambda: target.copy_(data), wait)  # reads and writes each byte
    sent = _least_seconds(lambda: target.copy_(pinned, non_blocking=True), wait)
    return Gpu(
        name=torch.cuda.get_device_name(device),
        free_bytes=free,
        bandwidth=2 * size / copied,
        rate=_rate(device, wait),
        link=size / sent,
    )


def _rate(device: str | torch.device, wait: Callable[[], None]) -> float:
    a, b = torch.randn(2, SIDE, SIDE, device=device).to(torch.bfloat16)
    return 2 * SIDE**3 / _least_seconds(lambda: a @ b, wait)


def _least_seconds(work: Callable[[], Tensor], wait: Callable[[], None]) -> float:
    """The least time of some tries; the first, which loads code, does not count."""
    seconds = []
    for _ in range(REPEATS + 1):
        wait()
        began = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _nothing() -> None:
    """On the CPU work is done when its call returns."""
