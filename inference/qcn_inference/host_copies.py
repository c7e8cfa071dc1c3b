"""Copies from a device into the host's memory, beside the work of the device.

They run on a stream of their own, into memory that the driver has locked in place (pinned), so that
neither the host nor the kernels wait for them.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

WASTE = 1 / 8
"""Of pinned memory, which torch gives out in powers of two: to waste more, it is taken in parts."""


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

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what will hold copies of x[0], x[1] and so on; x is not changed any more."""
        if self._stream is None:
            return x.unbind()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        copies: list[Tensor] = []
        with torch.cuda.stream(self._stream):
            for part in x.split_with_sizes(list(pieces(len(x), x[:1].nbytes))):
                copy = torch.empty(part.shape, dtype=x.dtype, pin_memory=True)
                copies += copy.copy_(part, non_blocking=True).unbind()
        x.record_stream(self._stream)  # its memory is taken for nothing else until then
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


def pieces(count: int, nbytes: int) -> Iterator[int]:
    """Cut `count` parts of so many bytes into runs that powers of two hold with little waste."""
    while count:
        total = count * nbytes
        most = 1 << (total - 1).bit_length() if total else 0
        run = count if most - total <= WASTE * most else max(1, (most // 2) // nbytes)
        yield run
        count -= run
