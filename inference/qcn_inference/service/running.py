"""A completion as the request that asked for it sees it: chunks as they come, then how it ended."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError, Future

from qcn_inference.request import Chunk, Finished
from qcn_inference.service.errors import as_api_error


class Running:
    """A completion under way: iterate `chunks` to their end, then take `result`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self._future: Future[Finished] | None = None

    def emit(self, chunk: Chunk | None) -> None:
        """Hand over a chunk, or None as the last; called on any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, chunk)

    def follow(self, future: Future[Finished]) -> None:
        """Wait for the job that emits here."""
        self._future = future
        future.add_done_callback(lambda _: self.emit(None))

    async def chunks(self) -> AsyncIterator[Chunk]:
        """The chunks as they come."""
        while (chunk := await self._queue.get()) is not None:
            yield chunk

    def result(self) -> Finished:
        """How it ended.

        Raises:
            ApiError: it failed, was superseded, or the engine is leaving.
        """
        assert self._future is not None
        try:
            return self._future.result(timeout=0)
        except (Exception, CancelledError) as error:
            raise as_api_error(error) from error

    def cancel(self) -> None:
        """Stop within one step, unless it has ended."""
        if self._future is not None:
            self._future.cancel()
