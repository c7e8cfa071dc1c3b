"""What a machine has: memories, and how fast it reads, copies and multiplies, as measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from qcn_inference.device import give_back, memory
from qcn_inference.planning.cpu_experts import ExpertRates, measured

MIB = 2**20
READ_BYTES = 256 * MIB
"""That a CPU reads and the link carries: more than caches hold."""
COPIED_BYTES = 4096 * MIB
"""Within a GPU, at most: a call costs some 10 us, in which a large one copies 40 MB."""
SIDE, LARGEST_SIDE = 2048, 8192
"""Of the matrices that are multiplied on a GPU, at least and at most: an H200 multiplies 2,048 wide
at less than half the rate that it reaches with 8,192."""
CPU_SIDES = (256, 512, 1024, 2048)
"""On a CPU, the first that takes LEAST_SECONDS, or the last: without instructions for bf16 one
product of the last takes 18 s, and matrix units are not filled by the first."""
MULTIPLIES_FP8 = (8, 9)
"""The first compute capability that does."""
LEAST_TRIES, LEAST_SECONDS = 3, 0.05
"""Of each measurement, whichever is more: an idle GPU takes some milliseconds to clock up."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as far as a plan needs it."""

    name: str
    free_bytes: int
    bandwidth: float  # bytes read per second
    rate: float  # floating-point operations per second, products of bf16 matrices
    link: float  # bytes per second from pinned host memory
    fp8_rate: float | None = None  # as `rate`, of FP8 matrices; None: it multiplies none


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with at most one GPU that counts."""

    free_bytes: int  # of host memory
    bandwidth: float  # bytes the CPU reads per second
    rate: float  # floating-point operations of the CPU per second, products of bf16 matrices
    gpu: Gpu | None = None
    expert_rates: ExpertRates | None = None  # of the CPU, measured where there is a GPU


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
    data = torch.ones(READ_BYTES // 4)
    return Machine(
        free_bytes=psutil.virtual_memory().available,
        bandwidth=READ_BYTES / _least_seconds(data.sum, _nothing),
        rate=_cpu_rate(),
        gpu=gpu,
        expert_rates=_expert_rates() if gpu is not None else None,
    )


def side_for(free_bytes: int) -> int:
    """How wide matrices to multiply on a GPU with so much free; they take a quarter at most.

    It is `LARGEST_SIDE`, or half of it, and so on down to `SIDE`, which take 25 MB.
    """
    side = LARGEST_SIDE
    while side > SIDE and 3 * 2 * side**2 > free_bytes // 4:
        side //= 2
    return side


def _gpu(device: torch.device) -> Gpu:
    free, _ = memory(device)
    side = side_for(free)

    def wait() -> None:
        torch.cuda.synchronize(device)

    found = Gpu(
        name=torch.cuda.get_device_name(device),
        free_bytes=free,
        bandwidth=_copying(device, min(COPIED_BYTES, free // 8), wait),
        rate=_rate(device, side, wait),
        link=_link(device, min(READ_BYTES, free // 8), wait),
        fp8_rate=_fp8_rate(device, side, wait),
    )
    give_back()
    return found


def _copying(device: torch.device, nbytes: int, wait: Callable[[], None]) -> float:
    source = torch.ones(nbytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / _least_seconds(lambda: target.copy_(source), wait)  # reads and writes each


def _link(device: torch.device, nbytes: int, wait: Callable[[], None]) -> float:
    pinned = torch.empty(nbytes // 4, pin_memory=True)
    target = torch.empty(nbytes // 4, device=device)
    return nbytes / _least_seconds(lambda: target.copy_(pinned, non_blocking=True), wait)


def _rate(device: torch.device, side: int, wait: Callable[[], None]) -> float:
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / _least_seconds(lambda: a @ b, wait)


def _cpu_rate() -> float:
    for side in CPU_SIDES:
        rate = _rate(torch.device("cpu"), side, _nothing)
        if 2 * side**3 / rate > LEAST_SECONDS:
            break
    return rate


def _expert_rates() -> ExpertRates:
    return measured(lambda work: _least_seconds(work, _nothing))


def _fp8_rate(device: torch.device, side: int, wait: Callable[[], None]) -> float | None:
    if torch.cuda.get_device_capability(device) < MULTIPLIES_FP8:
        return None
    drawn = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    a, b = drawn.to(torch.float8_e4m3fn)
    scale = torch.ones((), device=device)

    def product() -> Tensor:
        return torch._scaled_mm(a, b.T, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)

    return 2 * side**3 / _least_seconds(product, wait)


def _least_seconds(work: Callable[[], object], wait: Callable[[], None]) -> float:
    """The least time of some tries; the first, which loads code, does not count."""
    seconds: list[float] = []
    work()
    while len(seconds) < LEAST_TRIES or sum(seconds) < LEAST_SECONDS:
        wait()
        began = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _nothing() -> None:
    """On the CPU work is done when its call returns."""
