"""Copies from a device into the host's memory, beside the work of the device.

They run on a stream of their own, into memory that the driver has locked in place (pinned), so that
neither the host nor the kernels wait for them.

To lock memory takes the driver long, on an H200's host 21 ms for 50 MB, and launches of all threads
wait meanwhile. torch keeps what was locked once. So it is taken in small pieces, and, by a thread
beside the model's, as much again as was used, before it is needed.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue

import torch
from torch import Tensor

from qcn_inference.device import make_current

log = logging.getLogger(__name__)

WASTE = 1 / 8
"""Of pinned memory, which torch gives out in powers of two: to waste more, it is taken in parts."""
LARGEST = 8 << 20
"""Bytes of a piece, where one part is no more: launches wait some 4 ms for it to be locked."""


class Arriving:
    """A number [1] on its way from a device to the host, beside what is queued there next."""

    def __init__(self, x: Tensor) -> None:
        self._number, self._event = x, None
        if x.is_cuda:
            self._number = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._number.copy_(x, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> int:
        """Return it; waits for what was queued in front of it alone."""
        if self._event is not None:
            self._event.synchronize()
        return int(self._number)


class HostCopies:
    """Copies from one device. A device that is the CPU has nothing to copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._spare = Spare(partial(_pinned, device))

    def expect(self, *tensors: Tensor) -> None:
        """Have memory ready for copies of tensors like these."""
        if self._stream is not None:
            self._spare.want([part.nbytes for x in tensors for part in _cut(x)])

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what will hold copies of x[0], x[1] and so on; x is not changed any more."""
        if self._stream is None:
            return x.unbind()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        copies: list[Tensor] = []
        with torch.cuda.stream(self._stream):
            for part in _cut(x):
                copy = torch.empty(part.shape, dtype=x.dtype, pin_memory=True)
                copies += copy.copy_(part, non_blocking=True).unbind()
        x.record_stream(self._stream)  # its memory is taken for nothing else until then
        self.expect(x)
        return tuple(copies)

    def when_done(self) -> Callable[[], None]:
        """Return what waits, on any thread, until all that were started by now are done."""
        if self._stream is None:
            return lambda: None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event.synchronize

    def before_use(self) -> None:
        """Let what is queued next on the device wait for them."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


def _pinned(device: torch.device, nbytes: int) -> Tensor:
    make_current(device)
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


def _cut(x: Tensor) -> Sequence[Tensor]:
    return x.split_with_sizes(list(pieces(len(x), x[:1].nbytes)))


def pieces(count: int, nbytes: int) -> Iterator[int]:
    """Cut `count` parts of so many bytes into runs that powers of two hold with little waste."""
    most = max(1, LARGEST // max(1, nbytes))
    while count:
        run = min(count, most)
        held = 1 << (run * nbytes - 1).bit_length()
        if nbytes and held - run * nbytes > WASTE * held:
            run = max(1, held // 2 // nbytes)
        yield run
        count -= run


class Spare:
    """Memory that an allocator keeps for the next who asks, because it was taken and let go."""

    def __init__(self, take: Callable[[int], object]) -> None:
        """`take` takes so many bytes, on a thread of its own; what it returns is let go."""
        self._wanted: SimpleQueue[Sequence[int] | None] = SimpleQueue()
        threading.Thread(
            target=_take_and_let_go, args=(self._wanted, take), name="pinned memory", daemon=True
        ).start()
        weakref.finalize(self, self._wanted.put, None)

    def want(self, sizes: Sequence[int]) -> None:
        """Have so much taken and let go, with what else is wanted by then; returns at once."""
        self._wanted.put(sizes)


def _take_and_let_go(
    wanted: SimpleQueue[Sequence[int] | None], take: Callable[[int], object]
) -> None:
    ends = False
    while not ends:
        found = [wanted.get()]
        while not wanted.empty():
            found.append(wanted.get())
        ends = None in found
        _hold_all([size for sizes in found for size in sizes or ()], take)


def _hold_all(sizes: Sequence[int], take: Callable[[int], object]) -> None:
    """Until the last is taken."""
    try:
        held = [take(size) for size in sizes]
        log.debug("%d pieces of pinned memory are ready", len(held))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        log.info("no pinned memory is ready for what is copied next: %s", reason)
