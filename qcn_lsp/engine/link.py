"""The link to the engine: one object through which the language server completes text, and chats.

Purpose. The server asks `complete()` or `chat()`; whether an engine runs, must be started, is
loading, has died or is on another machine is the link's business, and visible as one
`EngineStatus`.

Guarantees. Nothing is started before the first `complete()`, `chat()` or `ensure_ready()`. However
many requests wait, one attempt to start is under way, and cancelling a request cancels neither that
attempt nor another request. A request either returns one result, or raises `EngineUnavailable`
(a sentence for the user) or `Superseded`; a cancelled one closes its connection at once.

Failure modes. An engine that left since the last request (it does when idle) is started again
and the request tried once more: nothing had been sent. One that dies while it answers fails that
request, because it may be the cause, and the next request starts a new one. Attempts that fail
in a row are spaced further and further apart, and requests in between fail with the same message.

Rejected: watching the engine between requests. It would keep an unused engine's socket busy to
learn a little earlier what the next request learns anyway.
"""

import asyncio
import logging
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from qcn_lsp.engine.messages import (
    ChatListener,
    ChatRequest,
    ChatResult,
    Completer,
    CompletionRequest,
    CompletionResult,
    ConnectionLost,
    ContextFile,
    EngineState,
    EngineStatus,
    EngineUnavailable,
    Refused,
    Superseded,
    Unreachable,
)

if TYPE_CHECKING:
    from qcn_lsp.engine.dialects import OwnEngine
    from qcn_lsp.engine.local import LocalEngine
    from qcn_lsp.engine.remote import RemoteEndpoint
    from qcn_lsp.settings import EngineSettings

__all__ = [
    "CompletionRequest",
    "CompletionResult",
    "ContextFile",
    "EngineLink",
    "EngineState",
    "EngineStatus",
    "EngineUnavailable",
    "Superseded",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_DELAY_SECONDS = 60.0
CLOSED = "The link to the engine is closed."


class EngineLink:
    """The way to the engine of one model; `on_status` hears every change of state.

    Each model has an engine of its own: a process. So a model that fails takes no other along, one
    that is idle gives all its memory back, and one that works keeps no other from its thread.

    `budgets` are the MiB that a local engine gets in memory (0: its choice) and on disk (None: its
    choice) when it is started; `beside` is the model of another local engine, which needs room on
    the same GPU. `tcp` has it listen on a loopback port instead of a Unix socket.
    """

    def __init__(
        self,
        settings: "EngineSettings",
        model: str,
        *,
        on_status: Callable[[EngineStatus], None],
        budgets: tuple[int, int | None] = (0, None),
        beside: str | None = None,
        tcp: bool = sys.platform == "win32",
    ) -> None:
        self.status = EngineStatus(EngineState.STOPPED)
        self._settings = settings
        self._model = model
        self._on_status = on_status
        self._budgets = budgets
        self._beside = beside
        self._tcp = tcp
        self._source: LocalEngine | RemoteEndpoint | None = None
        self._completer: Completer | None = None
        self._attaching: asyncio.Task[Completer] | None = None
        self._failures = Failures()
        self._closed = False
        # Keys of different windows must not supersede each other in the shared engine.
        self._own = uuid.uuid4().hex

    async def ensure_ready(self) -> None:
        """Return once completions can be answered; raises `EngineUnavailable`."""
        await self._ready()

    async def complete(self, request: CompletionRequest) -> CompletionResult:
        """Complete the text of `request`; starts the engine when it is first needed.

        Raises `EngineUnavailable` or `Superseded`. Cancelling drops the connection.
        """
        if request.supersede is not None:
            request = replace(request, supersede=f"{self._own}:{request.supersede}")
        return await self._ask(lambda completer: completer.complete(request))

    async def chat(self, request: ChatRequest, listener: ChatListener | None = None) -> ChatResult:
        """Answer the turns of `request`; `listener` hears of the answer as it comes.

        Starts the engine when it is first needed. Raises `EngineUnavailable` (`NoChatModel` where
        the model has no chat template) or `Superseded`. Cancelling drops the connection.
        """
        if request.supersede is not None:
            request = replace(request, supersede=f"{self._own}:{request.supersede}")
        return await self._ask(lambda completer: completer.chat(request, listener))

    @property
    def own_engine(self) -> "OwnEngine | None":
        """Our own engine, while it is attached; None where there is none, or another endpoint."""
        from qcn_lsp.engine.dialects import OwnEngine

        return self._completer if isinstance(self._completer, OwnEngine) else None

    @property
    def infills(self) -> bool:
        """Whether completions are to be asked for by fill-in-the-middle, as far as is known."""
        own = self.own_engine
        return own is None or own.infills

    async def close(self) -> None:
        """Close the connections; the engine stays up for the user's other windows."""
        self._closed = True
        attaching, self._attaching = self._attaching, None
        if attaching is not None:
            attaching.cancel()
            await asyncio.gather(attaching, return_exceptions=True)
        await self._drop(self._completer)
        self._set(EngineStatus(EngineState.STOPPED))

    async def _ask(self, question: Callable[[Completer], Awaitable[T]]) -> T:
        completer = await self._ready()
        try:
            return await self._ask_once(completer, question)
        except Unreachable:
            # It left since it was last used, or another window has just started a new one that
            # is still loading. Nothing was computed: once more.
            return await self._ask_once(await self._ready(), question)

    async def _ask_once(
        self, completer: Completer, question: Callable[[Completer], Awaitable[T]]
    ) -> T:
        try:
            result = await question(completer)
        except (Unreachable, ConnectionLost) as error:
            message = await self._lost(completer, error)
            raise type(error)(message) from error
        except Refused as refusal:
            if refusal.status in (401, 403, 404):  # the settings are wrong, not the request
                await self._drop(completer)
                self._failures.record()
                self._set(EngineStatus(EngineState.ERRORED, str(refusal), completer.model))
            raise
        self._failures.clear()
        return result

    async def _lost(self, completer: Completer, error: EngineUnavailable) -> str:
        """Take note that the engine is gone; return the message for it."""
        if completer is not self._completer:
            return str(error)  # another request has already seen it
        await self._drop(completer)
        message = str(error)
        self._set(EngineStatus(EngineState.EXITED, message, completer.model))
        if isinstance(error, ConnectionLost) and self._source is not None:
            self._failures.record()
            message += await self._source.ending()
            if self.status.state is EngineState.EXITED:  # no other request has started it anew
                self._set(EngineStatus(EngineState.EXITED, message, completer.model))
        return message

    async def _ready(self) -> Completer:
        """Return the attached completer; all callers share one attempt to attach."""
        if self._closed:
            raise EngineUnavailable(CLOSED)
        if self._completer is not None:
            return self._completer
        if self._attaching is None:
            if (seconds := self._failures.seconds_to_wait()) > 0:
                raise EngineUnavailable(f"{self.status.message} (next try in {seconds:.0f} s)")
            self._attaching = asyncio.create_task(self._attach())
            self._attaching.add_done_callback(self._attached)
        attempt = self._attaching
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if attempt.cancelled() and not _being_cancelled():
                raise EngineUnavailable(CLOSED) from None
            raise

    async def _attach(self) -> Completer:
        try:
            source = await self._make_source()
            completer = await source.attach(self._set)
        except EngineUnavailable as error:
            self._refuse(str(error))
            raise
        except Exception as error:  # a mistake of ours: in the log, and no end to the server
            logger.exception("attaching to the engine failed")
            message = f"The link to the engine failed ({error!r}); the log has the details."
            self._refuse(message)
            raise EngineUnavailable(message) from error
        self._completer = completer
        self._set(EngineStatus(EngineState.READY, "", completer.model))
        return completer

    def _refuse(self, message: str) -> None:
        self._failures.record()
        self._set(EngineStatus(EngineState.ERRORED, message, self._model))

    def _attached(self, attempt: "asyncio.Task[Completer]") -> None:
        if self._attaching is attempt:
            self._attaching = None
        if not attempt.cancelled():
            attempt.exception()  # whoever waited has been told; nobody may be left to wait

    async def _make_source(self) -> "LocalEngine | RemoteEndpoint":
        """Return where completions come from; imports the HTTP library when first called."""
        if self._source is None:
            from qcn_lsp.engine.client import load_http_library

            await load_http_library()
            from qcn_lsp.engine.local import LocalEngine
            from qcn_lsp.engine.process import EngineOptions
            from qcn_lsp.engine.remote import RemoteEndpoint
            from qcn_lsp.engine.runtime import resolve_model

            settings, model = self._settings, self._model
            if settings.url is None:
                options = EngineOptions(
                    settings.idle_minutes,
                    *self._budgets,
                    device=settings.device,
                    device_memory_mib=settings.device_memory_mib,
                    kv_cache_dtype=settings.kv_cache_dtype,
                    beside=None if self._beside is None else resolve_model(self._beside),
                )
                self._source = LocalEngine(model, options=options, tcp=self._tcp)
            else:
                token = settings.token.get_secret_value() if settings.token else None
                self._source = RemoteEndpoint(settings.url, token=token, model=model)
        return self._source

    async def _drop(self, completer: Completer | None) -> None:
        if completer is not None and completer is self._completer:
            self._completer = None
            await completer.close()

    def _set(self, status: EngineStatus) -> None:
        if status == self.status:
            return
        if status.state != self.status.state:
            logger.info("engine: %s -> %s %s", self.status.state, status.state, status.message)
        self.status = status
        self._on_status(status)


def _being_cancelled() -> bool:
    """Return whether somebody cancelled the running task itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Failures:
    """How many attempts failed in a row, and how long to wait before the next."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._in_a_row = 0
        self._last = 0.0

    def record(self) -> None:
        """Count a failure."""
        self._in_a_row += 1
        self._last = self._clock()

    def clear(self) -> None:
        """Start afresh after a success."""
        self._in_a_row = 0

    def seconds_to_wait(self) -> float:
        """Return the time left to wait: none after the first failure, then 2, 4, 8… seconds."""
        if self._in_a_row < 2:
            return 0.0
        delay = min(2.0 ** (self._in_a_row - 1), LONGEST_DELAY_SECONDS)
        return max(0.0, self._last + delay - self._clock())
