"""`POST /v1/chat/completions`: OpenAI's, by the checkpoint's own template."""

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from qcn_inference.chat_prompt import Rendering
from qcn_inference.contexts import Context
from qcn_inference.request import (
    Chunk,
    Finished,
    GenerationRequest,
    Prompt,
    PromptRead,
    RequestError,
    TokenLogprobs,
)
from qcn_inference.service.chat_schemas import ChatBody
from qcn_inference.service.completions import FINISH_REASONS, usage
from qcn_inference.service.contexts import named_context
from qcn_inference.service.engine import Engine
from qcn_inference.service.errors import as_api_error
from qcn_inference.service.http import answer, check_model, engine_of, read_body, unless_gone
from qcn_inference.service.templating import rendered
from qcn_inference.tokenizer import IM_START
from qcn_inference.tool_calls import Arguments, Call, Event, Text, Tool, ToolCallParser

if TYPE_CHECKING:
    from qcn_inference.generate import Loaded


async def post_chat_completions(request: Request) -> Response:
    """Answer messages; calls of the tools that are declared are told apart from text."""
    engine = engine_of(request)
    body = await read_body(request, ChatBody)
    check_model(engine, body.model)
    loaded, context = engine.ready(), named_context(engine, body.context, chat=True)
    prompt = await unless_gone(request, _prompt(engine, loaded, body, context))
    generation = GenerationRequest(
        prompt=lambda: prompt,
        prepare=lambda: _restored(loaded, context),
        max_tokens=loaded.context_length if body.limit is None else body.limit,
        sampling=body.sampling,
        stop=tuple(body.stop or ()),
        logprobs=body.alternatives,
        tells_reading=bool(body.stream and body.return_progress),
    )
    running = engine.submit(generation, body.rank, body.supersede)
    return await answer(request, running, _Chat(engine, body), stream=bool(body.stream))


def _restored(loaded: "Loaded", context: Context | None) -> Iterator[None]:
    """The steps that bring a context back from disk, however long it is."""
    if context is not None:
        yield from loaded.restore(context.ids, context.repo, loaded.cache.max_bytes)


async def _prompt(
    engine: Engine, loaded: "Loaded", body: ChatBody, context: Context | None
) -> Prompt:
    """The messages as ids, behind those of a context.

    Raises:
        ApiError: the model does not chat, its template refuses them, or they do not fit.
    """
    messages = [message.values for message in body.messages]
    if context is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": ""})
    values: dict[str, Any] = {"enable_thinking": False, **(body.chat_template_kwargs or {})}
    values["messages"] = messages
    if body.declared:
        values["tools"] = [tool.values for tool in body.declared]
    rendering, text = await rendered(engine, values, placed=context is not None)
    try:
        behind = text if context is None else _behind(context, rendering, text)
        ids = await run_in_threadpool(rendering.ids, loaded.tokenizer, behind + body.forced)
        prompt = _joined(loaded, context, ids)
        if len(prompt.ids) >= loaded.context_length:
            raise RequestError(
                f"the messages take {len(prompt.ids)} tokens of a context of"
                f" {loaded.context_length}"
            )
    except RequestError as error:
        raise as_api_error(error) from None
    return prompt


def _behind(context: Context, rendering: Rendering, text: str) -> str:
    """What stands behind the repository.

    Raises:
        RequestError: something stands in front of it, so that it could not be shared.
    """
    before, behind = rendering.around_place(text)
    if before != context.turn:
        raise RequestError(
            "the model's chat template puts tools in front of a repository: leave out `tools` or"
            " `context`"
        )
    return behind


def _joined(loaded: "Loaded", context: Context | None, ids: list[int]) -> Prompt:
    """The prompt, kept behind its first turn, which other chats have too, and in front of its last.

    And wherever the context is worth keeping.
    """
    front = () if context is None else context.ids
    opener = loaded.tokenizer.control_id(IM_START)
    turns = [at + len(front) for at, token in enumerate(ids) if token == opener and at + len(front)]
    keep = sorted({*(context.keep if context else ()), *turns[:1], *turns[-1:]})
    return Prompt(
        [*front, *ids],
        tuple(keep),
        context_tokens=len(front),
        superseded=() if context is None else context.superseded(""),
    )


class _Chat:
    """OpenAI's way to write answers."""

    closing = "[DONE]"

    def __init__(self, engine: Engine, body: ChatBody) -> None:
        self._body = body
        self._tokenizer = engine.ready().tokenizer
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": engine.name,
        }
        tools = {
            tool.function.name: Tool.of(tool.function.name, tool.function.parameters)
            for tool in body.declared
        }
        self._parser = ToolCallParser(tools) if tools else None
        self._forced = self._parser.push(body.forced) if self._parser else []
        self._calls = 0

    def whole(self, chunks: list[Chunk], finished: Finished) -> dict[str, Any]:
        """The answer in one piece."""
        events = [event for chunk in chunks for event in self._read(chunk.text)]
        text, calls = "", list[dict[str, Any]]()
        for event in [*self._forced, *events, *self._ended(finished)]:
            match event:
                case Text(more):
                    text += more
                case Call():
                    calls.append(_opened(event))
                case Arguments(index, more):
                    calls[index]["function"]["arguments"] += more
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
        if calls:
            message["tool_calls"] = calls
        tokens = [token for chunk in chunks for token in chunk.tokens]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(tokens),
            "finish_reason": self._reason(finished),
        }
        return {**self._head, "choices": [choice], "usage": usage(finished)}

    async def events(self, chunks: AsyncIterator[Chunk]) -> AsyncIterator[dict[str, Any]]:
        """Deltas: who speaks, then what is certain of each chunk."""
        yield self._delta({"role": "assistant", "content": ""})
        for event in self._forced:
            yield self._delta(_written(event))
        async for chunk in chunks:
            if chunk.reading is not None:
                yield self._delta({}) | {"prompt_progress": _read_so_far(chunk.reading)}
                continue
            written = [_written(event) for event in self._read(chunk.text)]
            if chunk.tokens and not written:
                written = [{}]
            for number, delta in enumerate(written):
                yield self._delta(delta, () if number else chunk.tokens)

    def last_events(self, finished: Finished) -> list[dict[str, Any]]:
        """What was held back, how it ended, and the usage if it was asked for."""
        events = [self._delta(_written(event)) for event in self._ended(finished)]
        events.append(self._delta({}, reason=self._reason(finished)))
        if self._body.wants_usage:
            events.append({**self._head, **_CHUNK, "choices": [], "usage": usage(finished)})
        return events

    def _read(self, text: str) -> list[Event]:
        if self._parser is not None:
            return self._allowed(self._parser.push(text))
        return [Text(text)] if text else []

    def _ended(self, finished: Finished) -> list[Event]:
        if self._parser is None:
            return []
        return self._allowed(self._parser.finish(complete=finished.reason != "limit"))

    def _allowed(self, events: list[Event]) -> list[Event]:
        """Calls beyond the first are dropped where only one is asked for."""
        one = self._body.parallel_tool_calls is False
        kept = [event for event in events if isinstance(event, Text) or not (one and event.index)]
        self._calls += sum(isinstance(event, Call) for event in kept)
        return kept

    def _reason(self, finished: Finished) -> str:
        reason = FINISH_REASONS[finished.reason]
        called = self._calls or any(isinstance(event, Call) for event in self._forced)
        return "tool_calls" if called and reason == "stop" else reason

    def _delta(
        self,
        delta: dict[str, Any],
        tokens: tuple[TokenLogprobs, ...] = (),
        reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": self._logprobs(tokens) if tokens else None,
            "finish_reason": reason,
        }
        return {**self._head, **_CHUNK, "choices": [choice]}

    def _logprobs(self, tokens: "list[TokenLogprobs] | tuple[TokenLogprobs, ...]") -> Any:
        if self._body.alternatives is None:
            return None
        return {
            "content": [
                {
                    **self._labelled(token.token, token.logprob),
                    "top_logprobs": [self._labelled(*other) for other in token.top],
                }
                for token in tokens
            ],
            "refusal": None,
        }

    def _labelled(self, token: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": self._tokenizer.token_label(token),
            "logprob": logprob,
            "bytes": list(self._tokenizer.token_bytes(token)),
        }


_CHUNK = {"object": "chat.completion.chunk"}


def _opened(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": ""}
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}


def _read_so_far(reading: PromptRead) -> dict[str, int]:
    """What llama.cpp calls a prompt's progress."""
    return {"total": reading.total, "cache": reading.cached, "processed": reading.read}


def _written(event: Event) -> dict[str, Any]:
    """An event of the parser as a delta."""
    match event:
        case Text(text):
            return {"content": text}
        case Call(index):
            return {"tool_calls": [{"index": index, **_opened(event)}]}
        case Arguments(index, more):
            return {"tool_calls": [{"index": index, "function": {"arguments": more}}]}
