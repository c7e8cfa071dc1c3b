"""`POST /infill`: llama.cpp's, as its editor plugins send it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qcn_inference.fim import ContextFile, InfillText, infill_prompt
from qcn_inference.request import Chunk, Finished, GenerationRequest, Prompt
from qcn_inference.service.contexts import bring, named_context, readable
from qcn_inference.service.engine import Engine
from qcn_inference.service.http import answer, engine_of, read_body
from qcn_inference.service.schemas import InfillBody, lenient_stops

# However many tokens are asked for, this share of the room behind a context is the prompt's.
PROMPT_SHARE = 0.75


async def post_infill(request: Request) -> Response:
    """Complete at the cursor. Everything in the body is plain text."""
    engine = engine_of(request)
    body = await read_body(request, InfillBody)
    running = engine.submit(_generation(engine, body), body.rank, body.supersede)
    return await answer(request, running, _Infill(engine, body), stream=bool(body.stream))


def _generation(engine: Engine, body: InfillBody) -> GenerationRequest:
    loaded = engine.infilling()
    context = named_context(engine, body.context)
    text = InfillText(
        prefix=body.input_prefix + body.prompt,
        suffix=body.input_suffix,
        path=body.filename,
        repo=body.repo_name,
        extra=tuple(ContextFile(file.filename, file.text) for file in body.input_extra),
    )
    max_tokens = loaded.context_length if body.n_predict < 0 else body.n_predict

    def prompt() -> Prompt:
        front = readable(loaded, context)
        ids = () if front is None else front.ids
        free = loaded.context_length - len(ids)
        room = max(int(free * PROMPT_SHARE), free - max_tokens)
        made = infill_prompt(loaded.tokenizer, text, room, loaded.model.config.fim_order, ids)
        return made if front is None else replace(made, superseded=front.superseded(text.path))

    return GenerationRequest(
        prompt=prompt,
        prepare=lambda: bring(loaded, context),
        max_tokens=max_tokens,
        sampling=body.sampling,
        stop=lenient_stops(body.stop),
        cache_prompt=body.cache_prompt,
        max_predict_seconds=body.t_max_predict_ms / 1000 if body.t_max_predict_ms > 0 else None,
    )


class _Infill:
    """llama.cpp's way to write answers."""

    closing = None

    def __init__(self, engine: Engine, body: InfillBody) -> None:
        self._name = engine.name
        self._has_context = body.context is not None
        self._fields = body.response_fields

    def whole(self, chunks: list[Chunk], finished: Finished) -> dict[str, Any]:
        """The answer in one piece."""
        return self._selected(self._final("".join(chunk.text for chunk in chunks), finished))

    async def events(self, chunks: AsyncIterator[Chunk]) -> AsyncIterator[dict[str, Any]]:
        """One event per chunk, before the last."""
        async for chunk in chunks:
            yield {"content": chunk.text, "stop": False}

    def last_events(self, finished: Finished) -> list[dict[str, Any]]:
        """How it ended; the content has been sent."""
        return [self._selected(self._final("", finished))]

    def _final(self, content: str, finished: Finished) -> dict[str, Any]:
        return {
            "index": 0,
            "content": content,
            "stop": True,
            "stop_type": finished.reason,
            "stopping_word": finished.stopping_word,
            "model": self._name,
            "tokens_predicted": finished.completion_tokens,
            "tokens_evaluated": finished.prompt_tokens,
            "tokens_cached": finished.cached_tokens,
            "truncated": finished.truncated,
            "timings": _timings(finished),
        } | ({"context_tokens": finished.context_tokens} if self._has_context else {})

    def _selected(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The fields asked for; `timings/prompt_n` stands at the top under just that name."""
        if not self._fields:
            return answer
        flat = {**answer, **{f"timings/{name}": value for name, value in answer["timings"].items()}}
        return {name: flat[name] for name in self._fields if name in flat}


def _timings(finished: Finished) -> dict[str, Any]:
    """llama.cpp's; `prompt_n` counts what was read, `cache_n` what was not."""
    read = finished.prompt_tokens - finished.cached_tokens
    predicted = finished.completion_tokens
    return {
        "cache_n": finished.cached_tokens,
        "prompt_n": read,
        "prompt_ms": finished.prompt_seconds * 1000,
        "prompt_per_token_ms": finished.prompt_seconds * 1000 / max(1, read),
        "prompt_per_second": read / max(1e-9, finished.prompt_seconds),
        "predicted_n": predicted,
        "predicted_ms": finished.predicted_seconds * 1000,
        "predicted_per_token_ms": finished.predicted_seconds * 1000 / max(1, predicted),
        "predicted_per_second": predicted / max(1e-9, finished.predicted_seconds),
        "draft_n": finished.drafted_tokens,
        "draft_n_accepted": finished.accepted_tokens,
    }
