"""OpenAI's `POST /v1/chat/completions`, streamed: what our engine and other endpoints speak alike.

Deltas are read as they come and handed on; the answer is complete only when the other side has said
how it ended. Anything else that it sends - thoughts, roles, calls of tools nobody declared - is
passed over.
"""

import time
from contextlib import aclosing
from typing import Any

from qcn_lsp.engine.client import HttpClient, count_in, object_in
from qcn_lsp.engine.messages import ChatListener, ChatRequest, ChatResult, ConnectionLost

SILENCE_SECONDS = 600.0
"""How long the other side may be silent: a long prompt is read before the first word comes."""


def chat_body(request: ChatRequest) -> dict[str, Any]:
    """Return what every endpoint is asked with."""
    body: dict[str, Any] = {
        "messages": [{"role": one.role, "content": one.content} for one in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if request.seed is not None:
        body["seed"] = request.seed
    return body


async def stream_chat(
    client: HttpClient, path: str, body: dict[str, Any], listener: ChatListener | None
) -> ChatResult:
    """Ask, have `listener` hear of the answer as it comes, and return the whole.

    Raises `EngineUnavailable`, or `Superseded`.
    """
    began = time.perf_counter()
    pieces: list[str] = []
    reason: object = None
    usage: dict[str, Any] = {}
    stream = client.events(path, body, silence_seconds=SILENCE_SECONDS)
    async with aclosing(stream) as events:
        async for event in events:
            usage = object_in(event.get("usage")) or usage
            if listener is not None and (progress := object_in(event.get("prompt_progress"))):
                known = count_in(progress.get("cache"))
                done, total = (count_in(progress.get(key)) for key in ("processed", "total"))
                listener.reading(max(0, done - known), max(0, total - known))
            choices = event.get("choices")
            if not isinstance(choices, list) or not choices:
                continue
            choice = object_in(choices[0])
            reason = choice.get("finish_reason") or reason
            piece = object_in(choice.get("delta")).get("content")
            if isinstance(piece, str) and piece:
                pieces.append(piece)
                if listener is not None:
                    listener.wrote(piece)
    if reason is None:
        raise ConnectionLost(f"{client.name} broke off in the middle of its answer.")
    details = object_in(usage.get("prompt_tokens_details"))
    return ChatResult(
        text="".join(pieces),
        finish_reason="length" if reason == "length" else "stop",
        prompt_tokens=count_in(usage.get("prompt_tokens")),
        cached_tokens=count_in(details.get("cached_tokens")),
        completion_tokens=count_in(usage.get("completion_tokens")),
        milliseconds=(time.perf_counter() - began) * 1000,
    )
