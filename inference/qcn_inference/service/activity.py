"""Who is using the engine: how many requests are being served, and since when none is."""

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager


class Activity:
    """Belongs to the event loop's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_used = clock()
        self.active = 0
        self.unused = asyncio.Event()  # set while no request is being served
        self.unused.set()

    @contextmanager
    def use(self) -> Generator[None, None, None]:
        """Count a request for as long as it is being served."""
        self.active += 1
        self.unused.clear()
        try:
            yield
        finally:
            self.active -= 1
            self.touch()
            if not self.active:
                self.unused.set()

    def touch(self) -> None:
        """Start the idle time anew."""
        self._last_used = self._clock()

    @property
    def idle_seconds(self) -> float:
        """How long no request has been served; 0 while one is."""
        return 0.0 if self.active else self._clock() - self._last_used
