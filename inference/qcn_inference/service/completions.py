"""`POST /v1/completions`: OpenAI's."""

import codecs
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from qcn_inference.contexts import Context
from qcn_inference.fim import bare_infill_prompt
from qcn_inference.request import (
    Chunk,
    Finished,
    GenerationRequest,
    Prompt,
    RequestError,
    TokenLogprobs,
)
from qcn_inference.service.contexts import bring, named_context, readable
from qcn_inference.service.engine import Engine
from qcn_inference.service.http import answer, check_model, engine_of, read_body
from qcn_inference.service.schemas import CompletionBody

if TYPE_CHECKING:
    from qcn_inference.generate import Loaded

FINISH_REASONS = {"eos": "stop", "word": "stop", "limit": "length"}


async def post_completions(request: Request) -> Response:
    """Complete a prompt given as text or token ids; `suffix` makes it fill-in-the-middle."""
    engine = engine_of(request)
    body = await read_body(request, CompletionBody)
    check_model(engine, body.model)
    dialect = _Completions(engine, body)
    running = engine.submit(_generation(engine, body), body.rank, body.supersede)
    return await answer(request, running, dialect, stream=bool(body.stream))


def _generation(engine: Engine, body: CompletionBody) -> GenerationRequest:
    loaded = engine.ready() if body.suffix is None else engine.infilling()
    max_tokens = 16 if body.max_tokens is None else body.max_tokens

    context = named_context(engine, body.context)

    def prompt() -> Prompt:
        made = _behind(readable(loaded, context), _prompt(loaded, body))
        if len(made.ids) + max_tokens > loaded.context_length:
            raise RequestError(
                f"{len(made.ids)} prompt tokens and max_tokens ({max_tokens}) exceed the context"
                f" of {loaded.context_length} tokens"
            )
        return made

    return GenerationRequest(
        prompt=prompt,
        prepare=lambda: bring(loaded, context),
        max_tokens=max_tokens,
        sampling=body.sampling,
        stop=tuple(body.stop or ()),
        logprobs=body.logprobs,
        echo=bool(body.echo),
    )


def _prompt(loaded: "Loaded", body: CompletionBody) -> Prompt:
    """The prompt as its author wrote it, control tokens included; with a suffix both are plain."""
    prompt, tokenizer = body.one_prompt, loaded.tokenizer
    if isinstance(prompt, str):
        longest = loaded.context_length * tokenizer.longest_token_bytes
        if len(prompt.encode()) + len((body.suffix or "").encode()) > longest:
            raise RequestError(f"the prompt exceeds the context of {loaded.context_length} tokens")
        if body.suffix is not None:
            order = loaded.model.config.fim_order
            return bare_infill_prompt(tokenizer, prompt, body.suffix, order)
    ids = tokenizer.encode_with_control(prompt) if isinstance(prompt, str) else prompt
    # All but the last token, whose logits are needed: the next prompt often begins with this one.
    return Prompt(ids, (len(ids) - 1,) if len(ids) > 1 else ())


def _behind(context: Context | None, prompt: Prompt) -> Prompt:
    """A prompt behind a context."""
    if context is None:
        return prompt
    length = len(context.ids)
    return Prompt(
        [*context.ids, *prompt.ids],
        tuple(length + at for at in prompt.keep),
        context_tokens=length,
        superseded=context.superseded(""),
    )


class _Completions:
    """OpenAI's way to write answers."""

    closing = "[DONE]"

    def __init__(self, engine: Engine, body: CompletionBody) -> None:
        self._body = body
        self._tokenizer = engine.ready().tokenizer
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": engine.name,
        }
        self._offset = 0  # characters of the tokens so far
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def whole(self, chunks: list[Chunk], finished: Finished) -> dict[str, Any]:
        """The answer in one piece."""
        joined = Chunk(
            "".join(chunk.text for chunk in chunks),
            tuple(t for chunk in chunks for t in chunk.tokens),
        )
        text = self._echoed() + joined.text
        return {
            **self._head,
            "choices": [self._choice(text, joined, finished)],
            "usage": usage(finished),
        } | self._context(finished)

    async def events(self, chunks: AsyncIterator[Chunk]) -> AsyncIterator[dict[str, Any]]:
        """One event per chunk, before the last."""
        if echoed := self._echoed():
            yield {**self._head, "choices": [self._choice(echoed, Chunk(""), None)]}
        async for chunk in chunks:
            yield {**self._head, "choices": [self._choice(chunk.text, chunk, None)]}

    def last_events(self, finished: Finished) -> list[dict[str, Any]]:
        """How it ended, and the usage if it was asked for."""
        events: list[dict[str, Any]] = [
            {**self._head, "choices": [self._choice("", Chunk(""), finished)]}
            | self._context(finished)
        ]
        if self._body.wants_usage:
            events.append({**self._head, "choices": [], "usage": usage(finished)})
        return events

    def _context(self, finished: Finished) -> dict[str, int]:
        named = self._body.context is not None
        return {"context_tokens": finished.context_tokens} if named else {}

    def _echoed(self) -> str:
        if not self._body.echo:
            return ""
        prompt = self._body.one_prompt
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)

    def _choice(self, text: str, chunk: Chunk, finished: Finished | None) -> dict[str, Any]:
        return {
            "index": 0,
            "text": text,
            "logprobs": None if self._body.logprobs is None else self._logprobs(chunk),
            "finish_reason": None if finished is None else FINISH_REASONS[finished.reason],
        }

    def _logprobs(self, chunk: Chunk) -> dict[str, Any]:
        """OpenAI's parallel lists. The token itself is in `top_logprobs`, whatever its rank."""
        label = self._tokenizer.token_label
        offsets = []
        for token in chunk.tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token.token)))
        return {
            "tokens": [label(token.token) for token in chunk.tokens],
            "token_logprobs": [token.logprob for token in chunk.tokens],
            "top_logprobs": [self._alternatives(token) for token in chunk.tokens],
            "text_offset": offsets,
        }

    def _alternatives(self, token: TokenLogprobs) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        label = self._tokenizer.token_label
        return {label(other): value for other, value in token.top} | {
            label(token.token): token.logprob
        }


def usage(finished: Finished) -> dict[str, Any]:
    """What it cost in tokens; the drafts are ours."""
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
        "draft_n": finished.drafted_tokens,
        "draft_n_accepted": finished.accepted_tokens,
    }
