"""From a body to a checked value, and from a running completion to an answer or a stream."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from qcn_inference.request import Chunk, Finished
from qcn_inference.service.engine import Engine
from qcn_inference.service.errors import ApiError, invalid
from qcn_inference.service.running import Running

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")


class Dialect(Protocol):
    """How one interface writes its answers."""

    @property
    def closing(self) -> str | None:
        """The data of the event that ends a stream, if the dialect has one."""

    def whole(self, chunks: list[Chunk], finished: Finished) -> dict[str, Any]:
        """The answer in one piece."""

    def events(self, chunks: AsyncIterator[Chunk]) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream, before the last ones."""

    def last_events(self, finished: Finished) -> list[dict[str, Any]]:
        """The events that say how it ended."""


def engine_of(request: Request) -> Engine:
    """The engine that the application serves."""
    engine: Engine = request.app.state.engine
    return engine


def check_model(engine: Engine, name: str | None) -> None:
    """Whether the model that is asked for is the one that is served.

    Raises:
        ApiError: it is not.
    """
    if name not in (None, engine.name):
        served = f"this engine serves {engine.name}; leave `model` out, or ask another engine"
        raise ApiError(404, "model_not_found", served)


async def read_body(request: Request, schema: type[B]) -> B:
    """The body, checked.

    Raises:
        ApiError: it is no JSON in UTF-8, or not what `schema` says.
    """
    raw = await request.body()
    try:
        return schema.model_validate_json(raw)
    except ValidationError as error:
        raise invalid(error) from None


async def answer(request: Request, running: Running, dialect: Dialect, *, stream: bool) -> Response:
    """Answer with the completion; a client that hangs up ends it."""
    try:
        if stream:
            return await _streamed(request, running, dialect)
        chunks = await unless_gone(request, _collect(running.chunks()))
        return JSONResponse(dialect.whole(chunks, running.result()))
    except BaseException:
        running.cancel()
        raise


async def _collect(chunks: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in chunks]


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up.

    Raises:
        ClientDisconnect: it did.
    """

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, hanging_up = asyncio.ensure_future(work), asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait({working, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        hanging_up.cancel()


async def _streamed(request: Request, running: Running, dialect: Dialect) -> Response:
    """Server-sent events; an error before the first chunk is an ordinary answer."""
    chunks = running.chunks()
    first = await unless_gone(request, _next(chunks))
    if first is None:
        running.result()  # raises if it failed

    async def all_chunks() -> AsyncIterator[Chunk]:
        if first is not None:
            yield first
        async for chunk in chunks:
            yield chunk

    async def body() -> AsyncIterator[str]:
        async for event in dialect.events(all_chunks()):
            yield _event(json.dumps(event))
        try:
            last = dialect.last_events(running.result())
        except ApiError as error:
            last = [error.body]
        for event in last:
            yield _event(json.dumps(event))
        if dialect.closing is not None:
            yield _event(dialect.closing)

    return _EventStream(body(), running)


async def _next(chunks: AsyncIterator[Chunk]) -> Chunk | None:
    return await anext(chunks, None)


class _EventStream(StreamingResponse):
    """A stream whose completion ends with it, however it ends."""

    def __init__(self, body: AsyncIterator[str], running: Running) -> None:
        super().__init__(
            body, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client hangs up."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.cancel()


def _event(data: str) -> str:
    return f"data: {data}\n\n"
