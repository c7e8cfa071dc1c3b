"""`/v1/contexts/{id}`: what the model reads of a repository, kept up to date by its server.

`PUT` takes a layout. It is in force for completions from the moment that it is understood; the
answer comes when its tokens have been read, at low priority. A completion that names the context
reads what is missing itself, up to `MOST_UNREAD` tokens; where more is missing it is answered
without the context, and says so. A chat, which is asked about the repository, reads all of it.
"""

import asyncio
from collections.abc import Generator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qcn_inference.contexts import Context, Segment, context_limit, opening
from qcn_inference.request import CacheView, Refreshed
from qcn_inference.scheduler import Priority, Superseded
from qcn_inference.service.engine import Engine
from qcn_inference.service.errors import ApiError, as_api_error
from qcn_inference.service.http import engine_of, read_body, unless_gone
from qcn_inference.service.schemas import ContextBody
from qcn_inference.service.templating import turn_in_front

if TYPE_CHECKING:
    from qcn_inference.generate import Loaded

T = TypeVar("T")

MOST_UNREAD = 2048
"""Tokens that a completion may have to read of its context first: half a second on a CPU."""
MOST_RESTORED_BYTES = 256 * 2**20
"""What a completion may have to bring from disk first: as long as that, on a common SSD."""


async def put_context(request: Request) -> Response:
    """Take a layout: segments by their hashes, with the text of those that are new here."""
    engine = engine_of(request)
    name, arrival = request.path_params["id"], engine.contexts.arrive()
    body = await read_body(request, ContextBody)
    loaded = engine.ready() if body.dialect == "chat" else engine.infilling()
    tokenizer = loaded.tokenizer
    turn = await turn_in_front(engine) if body.dialect == "chat" else None
    if missing := _missing(engine, body):
        return missing
    new = await run_in_threadpool(_encoded, engine, body)
    if missing := _missing(engine, body):  # another context, which held some, has gone meanwhile
        return missing
    context = engine.contexts.compose(tokenizer, name, body.repo, body.segments, new, turn)
    spans = context.spans
    counts = [{"hash": span.segment.hash, "tokens": len(span.segment.ids)} for span in spans]
    limit = context_limit(loaded.context_length)
    if len(context.ids) > limit:
        message = f"{len(context.ids)} tokens, more than the {limit} that fit"
        return _refused(413, "context_too_long", message, segments=counts)
    if not engine.contexts.put(context, arrival):
        raise as_api_error(Superseded())
    answer = {"id": name, "tokens": len(context.ids), "segments": counts}
    refresh = _refresh(engine, context)
    if not body.wait:
        return JSONResponse(answer, status_code=202)
    try:
        refreshed = await unless_gone(request, _result(refresh))
    finally:
        refresh.cancel()
    return JSONResponse(answer | _cost(refreshed))


def _missing(engine: Engine, body: ContextBody) -> Response | None:
    """The refusal of a layout that names segments nobody has sent yet."""
    given = {place.hash for place in body.segments if place.text is not None}
    hashes = [place.hash for place in body.segments]
    unknown = engine.contexts.unknown(hashes, chat=body.dialect == "chat") - given
    if not unknown:
        return None
    message = f"{len(unknown)} segments lack their text"
    return _refused(409, "missing_segments", message, missing=sorted(unknown))


def _refused(status: int, kind: str, message: str, **more: object) -> Response:
    return JSONResponse(ApiError(status, kind, message).body | more, status_code=status)


def _refresh(engine: Engine, context: Context) -> Future[Refreshed]:
    """Queue the reading of a layout, and note what it cost when it is done."""
    job = engine.ready().refresh(context.ids, context.keep, context=context.id, repo=context.repo)
    future = engine.submit_job(job, Priority.REFRESH, _job_key(context.id))
    loop = asyncio.get_running_loop()

    def note(done: Future[Refreshed]) -> None:
        if not done.cancelled() and done.exception() is None and not loop.is_closed():
            engine.metrics.refreshed(done.result())
            loop.call_soon_threadsafe(engine.contexts.note, context.id, done.result())

    future.add_done_callback(note)
    return future


def _job_key(name: str) -> str:
    """Of the jobs with one key, the newest is done."""
    return f"context:{name}"


def _cost(refreshed: Refreshed) -> dict[str, float]:
    milliseconds = refreshed.seconds * 1000
    return {
        "reused": refreshed.reused,
        "restored": refreshed.restored,
        "computed": refreshed.computed,
        "milliseconds": milliseconds,
    }


def _encoded(engine: Engine, body: ContextBody) -> list[Segment]:
    """The segments that came with their text.

    Raises:
        ApiError: a hash is not that of the text.
    """
    tokenizer, segments = engine.ready().tokenizer, []
    for place in body.segments:
        if place.text is None:
            continue
        chat = body.dialect == "chat"
        segment = Segment.of(tokenizer, place.path, place.text, chat=chat)
        if segment.hash != place.hash:
            message = f"the segment {place.path!r} has another hash than it is sent under"
            raise ApiError(400, "invalid_request_error", message)
        segments.append(segment)
    return segments


async def get_context(request: Request) -> Response:
    """What the model sees: zones, segments, where it can be resumed, bytes, the last refreshes."""
    engine = engine_of(request)
    context = found_context(engine, request.path_params["id"])
    view = await _run(request, engine, engine.ready().view(context.ids))
    return JSONResponse(_described(engine, context, view))


def _described(engine: Engine, context: Context, view: CacheView) -> dict[str, Any]:
    return {
        "id": context.id,
        "repo": context.repo,
        "tokens": len(context.ids),
        "limit": context_limit(engine.ready().context_length),
        "context_length": engine.ready().context_length,
        "segments": [
            {
                "hash": span.segment.hash,
                "path": span.segment.path,
                "zone": span.zone,
                "hot": span.hot,
                "start": span.start,
                "tokens": len(span.segment.ids),
                "superseded": span.superseded_ids,
            }
            for span in context.spans
        ],
        "checkpoints": list(view.checkpoints),
        "reading": engine.scheduler.has(_job_key(context.id)),
        "bytes": {
            "used": view.nbytes,
            "budget": view.max_bytes,
            "disk_used": view.disk_nbytes,
            "disk_budget": view.disk_max_bytes,
        },
        "refreshes": [_cost(refreshed) for refreshed in engine.contexts.refreshes(context.id)],
    }


async def delete_context(request: Request) -> Response:
    """Forget a context, and all that was ever read of a repository of its name.

    A context that an earlier process had is unknown here, and what it read on disk all the same:
    so `repo` may say which repository that was.
    """
    engine, name = engine_of(request), request.path_params["id"]
    context, repo = engine.contexts.get(name), request.query_params.get("repo")
    engine.contexts.delete(name)  # also what is on its way here
    if context is None and repo is None:
        raise unknown_context(name)
    for one in {repo, context.repo if context else None}:
        if one is not None:
            await _forget(engine, [name], one)
    return JSONResponse({"id": name, "deleted": True})


async def delete_contexts(request: Request) -> Response:
    """Forget all contexts of repositories of one name, and all that was ever read of them."""
    engine = engine_of(request)
    repo = request.query_params.get("repo")
    if repo is None:
        message = "say which repository to forget: DELETE /v1/contexts?repo=NAME"
        raise ApiError(400, "invalid_request_error", message)
    names = engine.contexts.of_repository(repo)
    files = await _forget(engine, names, repo)
    return JSONResponse({"deleted": len(names), "files": files})


async def _forget(engine: Engine, names: list[str], repo: str) -> int:
    """Forget contexts, and what was read of their repository; the number of files removed.

    It is done even when the client hangs up, and where no model is loaded.

    Raises:
        ApiError: the queue is full, the engine is leaving, or a file could not be removed.
    """
    forgotten = None
    if (loaded := engine.loaded) is not None and engine.error is None:
        turns = {None, engine.chat_turn}  # as contexts of both dialects begin
        beginnings = [opening(loaded.tokenizer, repo, turn) for turn in turns]
        # Their refreshes end here: one that has not begun yet would read the text again.
        for name in names:
            engine.submit_job(loaded.forget(), Priority.COMPLETION, _job_key(name))
        # Not under a context's key: a layout that is put meanwhile does not end it.
        forgotten = engine.submit_job(loaded.forget(*beginnings), Priority.COMPLETION, None)
    for name in names:
        engine.contexts.remove(name)
    if forgotten is not None:
        await _result(forgotten)
    try:
        return await run_in_threadpool(engine.forget_on_disk, repo)
    except OSError as error:
        message = f"not all of it could be removed: {error.strerror}, {error.filename}"
        raise ApiError(500, "internal_error", message) from error


def found_context(engine: Engine, name: str) -> Context:
    """The context of this name.

    Raises:
        ApiError: there is none.
    """
    context = engine.contexts.get(name)
    if context is None:
        raise unknown_context(name)
    return context


def unknown_context(name: str) -> ApiError:
    """What a client is told that names a context which is not there."""
    return ApiError(404, "unknown_context", f"there is no context {name!r}: put it first")


def named_context(engine: Engine, name: str | None, *, chat: bool = False) -> Context | None:
    """The newest layout of the context that a completion or a chat names, if it names one.

    Raises:
        ApiError: there is no such context, or it is in the other dialect.
    """
    if name is None:
        return None
    context = found_context(engine, name)
    if chat != (context.turn is not None):
        message = f"the context {name!r} is not for {'chats' if chat else 'completions'}"
        raise ApiError(400, "invalid_request_error", f"{message}: put it in the other dialect too")
    return context


def bring(loaded: "Loaded", context: Context | None) -> Generator[None, None, None]:
    """The steps that bring a context back from disk where it is not in memory."""
    if context is not None and loaded.unread(context.ids) > MOST_UNREAD:
        yield from loaded.restore(context.ids, context.repo, MOST_RESTORED_BYTES)


def readable(loaded: "Loaded", context: Context | None) -> Context | None:
    """A context, or none where a completion would have to wait too long for it to be read.

    Called on the model's thread, when the completion begins.
    """
    if context is None or loaded.unread(context.ids) > MOST_UNREAD:
        return None
    return context


async def _run(request: Request, engine: Engine, job: Generator[None, None, T]) -> T:
    """The result of a short job, which ends when the client hangs up.

    Raises:
        ApiError: it failed, or the engine is leaving.
    """
    future = engine.submit_job(job, Priority.COMPLETION, None)
    try:
        return await unless_gone(request, _result(future))
    finally:
        future.cancel()


async def _result(future: Future[T]) -> T:
    try:
        return await asyncio.wrap_future(future)
    except Exception as error:
        raise as_api_error(error) from error
