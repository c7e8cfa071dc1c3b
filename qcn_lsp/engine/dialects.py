"""Whom one may ask, and how: our engine by `/infill`, any other by OpenAI's `/v1/completions`.

Both chat by OpenAI's `/v1/chat/completions` (`chat.py`).
"""

import logging
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from qcn_lsp.engine.chat import chat_body, stream_chat
from qcn_lsp.engine.client import HttpClient, count_in, object_in
from qcn_lsp.engine.messages import (
    ChatListener,
    ChatRequest,
    ChatResult,
    CompletionRequest,
    CompletionResult,
    ContextLayout,
    ContextSegment,
    Dialect,
    EngineUnavailable,
    NoChatModel,
    Refused,
)
from qcn_lsp.engine.prompt import SPECIAL, STOP_STRINGS, fim_prompt

logger = logging.getLogger(__name__)

SERVER_NAME = "qcn-engine"
PROTOCOL = 1
HEALTH_SECONDS = 10.0
LAYOUTS_KEPT = 64  # of each dialect: as many as our engine keeps of both


@dataclass(frozen=True)
class Purged:
    """What forgetting a repository ended and removed from disk."""

    contexts: int
    files: int


@dataclass(frozen=True)
class Health:
    """What our engine says of itself on `/health`; `done` of `total` bytes of the model read."""

    version: str
    protocol: int
    state: str
    model: str | None
    model_path: str | None
    done: int
    total: int
    error: str | None
    pid: int | None
    active_requests: int
    idle_seconds: float
    context_length: int | None
    context_limit: int
    device: str
    device_problem: str | None  # why it is not a GPU, where one is
    disk_cache_problem: str | None
    infills: bool = True


async def engine_health(client: HttpClient, *, seconds: float | None = None) -> Health | None:
    """Return the health of our engine; None when something else answers there.

    Raises `Unreachable` when nobody listens, `NoAnswer` when it is silent for `seconds`
    (`HEALTH_SECONDS` unless told).
    """
    try:
        patience = seconds or HEALTH_SECONDS
        body = await client.get("/health", accept=(200, 503), seconds=patience)
    except Refused as refusal:
        if refusal.status in (401, 403):
            raise
        return None
    return _parse_health(body) if body.get("server") == SERVER_NAME else None


def _parse_health(body: dict[str, Any]) -> Health:
    progress, idle = object_in(body.get("progress")), body.get("idle_seconds")
    return Health(
        version=str(body.get("version")),
        protocol=count_in(body.get("protocol")),
        state=str(body.get("state")),
        model=body.get("model"),
        model_path=body.get("model_path"),
        done=count_in(progress.get("done")),
        total=count_in(progress.get("total")),
        error=body.get("error"),
        pid=body.get("pid"),
        active_requests=count_in(body.get("active_requests")),
        idle_seconds=idle if isinstance(idle, int | float) else 0.0,
        context_length=body.get("context_length"),
        context_limit=count_in(body.get("context_limit")),
        device=str(body.get("device") or ""),
        device_problem=body.get("device_problem"),
        disk_cache_problem=body.get("disk_cache_problem"),
        infills=body.get("fim") is not False,
    )


class OwnEngine:
    """Our engine, asked through `/infill`: all that is sent is plain text to it.

    `infills`: its model fills in the middle; else it completes by chats alone.
    """

    def __init__(self, client: HttpClient, model: str | None, *, infills: bool = True) -> None:
        self.client = client
        self.model = model
        self.infills = infills
        # By dialect and layout: hashes of the segments that the engine knows, it is thought.
        self._sent: dict[Dialect, dict[str, set[str]]] = {"fim": {}, "chat": {}}

    async def complete(self, request: CompletionRequest) -> CompletionResult:
        """Answer one request; raises `EngineUnavailable` or `Superseded`."""
        began = time.perf_counter()
        body: dict[str, Any] = {
            "input_prefix": request.prefix,
            "input_suffix": request.suffix,
            "input_extra": [{"filename": file.path, "text": file.text} for file in request.extra],
            "filename": request.path,
            "repo_name": request.repo,
            "n_predict": request.max_tokens,
            "stop": list(request.stop),
            "temperature": 0.0,
            "stream": False,
            "priority": "completion",
        }
        if request.supersede is not None:
            body["supersede"] = request.supersede
        if request.context is not None:
            body["context"] = request.context
        answer = await self.client.post("/infill", body)
        return CompletionResult(
            text=_text(answer.get("content"), self.client.name),
            finish_reason="length" if answer.get("stop_type") == "limit" else "stop",
            prompt_tokens=count_in(answer.get("tokens_evaluated")),
            cached_tokens=count_in(answer.get("tokens_cached")),
            completion_tokens=count_in(answer.get("tokens_predicted")),
            milliseconds=(time.perf_counter() - began) * 1000,
            context_tokens=count_in(answer.get("context_tokens")),
        )

    async def chat(self, request: ChatRequest, listener: ChatListener | None) -> ChatResult:
        """Answer a chat; raises `EngineUnavailable` or `Superseded`."""
        body = chat_body(request) | {"priority": request.priority}
        if listener is not None:
            body["return_progress"] = True
        if request.supersede is not None:
            body["supersede"] = request.supersede
        if request.context is not None:
            body["context"] = request.context
        try:
            return await stream_chat(self.client, "/v1/chat/completions", body, listener)
        except NoChatModel as error:
            raise NoChatModel(
                f"The model {self.model} cannot chat: set `models.chat` to one that can."
            ) from error

    async def put_context(self, layout: ContextLayout) -> int:
        """Put a layout in force and return its tokens; the engine reads it when it is idle.

        Only text that the engine lacks is sent. Raises `EngineUnavailable`, or `Superseded` by a
        newer layout.
        """
        path = f"/v1/contexts/{quote(layout.name, safe='')}"
        hashes, sent = {segment.hash for segment in layout.segments}, self._sent[layout.dialect]
        texts = hashes.difference(*sent.values())
        while True:
            body = {
                "repo": layout.repo,
                "dialect": layout.dialect,
                "wait": False,
                "segments": [_segment(one, one.hash in texts) for one in layout.segments],
            }
            answer = await self.client.put(path, body, accept=(202, 409, 413))
            missing = answer.get("missing")
            if not isinstance(missing, list):
                break
            if texts.issuperset(missing):
                raise EngineUnavailable(f"{self.client.name} asks for what it was sent.")
            texts |= set(missing)
        if "error" in answer:
            raise EngineUnavailable(f"{self.client.name} refuses the context: {_message(answer)}")
        sent.pop(layout.name, None)
        sent[layout.name] = hashes
        for oldest in list(sent)[:-LAYOUTS_KEPT]:
            del sent[oldest]
        return count_in(answer.get("tokens"))

    async def describe_context(self, name: str) -> dict[str, Any]:
        """Return what the engine says of a context; raises `UnknownContext`."""
        return await self.client.get(f"/v1/contexts/{quote(name, safe='')}")

    async def delete_context(self, name: str, repo: str) -> None:
        """Have the engine forget a context and all that was read of its repository.

        Also what an engine that has left since had read, and kept on disk.
        """
        await self.client.delete(
            f"/v1/contexts/{quote(name, safe='')}?repo={quote(repo, safe='')}", accept=(200, 404)
        )
        for sent in self._sent.values():
            sent.clear()

    async def purge(self, repo: str) -> Purged:
        """Have it forget all that was ever read of repositories of this name, on disk too."""
        answer = await self.client.delete(f"/v1/contexts?repo={quote(repo, safe='')}")
        return Purged(count_in(answer.get("deleted")), count_in(answer.get("files")))

    async def count_tokens(self, text: str) -> int:
        """Return how many tokens of the model `text` takes as plain text."""
        answer = await self.client.post("/tokenize", {"content": text, "count_only": True})
        return count_in(answer.get("count"))

    async def context_limit(self) -> int:
        """Return how many tokens a context may have."""
        health = await engine_health(self.client)
        return health.context_limit if health else 0

    async def disk_problem(self) -> str | None:
        """Return why the engine keeps nothing on disk of what it reads; None where it does."""
        health = await engine_health(self.client)
        return health.disk_cache_problem if health else None

    async def close(self) -> None:
        """Close the connections; the engine stays up for the user's other windows."""
        await self.client.close()


class OpenAIEndpoint:
    """Any server with OpenAI's `/v1/completions` and a model trained on this family's formats.

    It takes only text, in which a special token's string would act as the token: passages that
    hold one are left out of the prompt, and the log says so.
    """

    def __init__(self, client: HttpClient, model: str | None, prefix: str) -> None:
        self.client = client
        self.model = model
        self._prefix = prefix

    async def complete(self, request: CompletionRequest) -> CompletionResult:
        """Answer one request; raises `EngineUnavailable`."""
        began = time.perf_counter()
        prompt = fim_prompt(request)
        for passage in prompt.left_out:
            logger.warning("left out of the prompt to %s: %s", self.client.name, passage)
        body: dict[str, Any] = {
            "prompt": prompt.text,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "stop": [*STOP_STRINGS, *request.stop],
            "stream": False,
        }
        if self.model is not None:
            body["model"] = self.model
        answer = await self.client.post(f"{self._prefix}/completions", body)
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise EngineUnavailable(f"{self.client.name} sent a completion without `choices`.")
        usage = object_in(answer.get("usage"))
        details = object_in(usage.get("prompt_tokens_details"))
        return CompletionResult(
            text=_text(choices[0].get("text"), self.client.name),
            finish_reason="length" if choices[0].get("finish_reason") == "length" else "stop",
            prompt_tokens=count_in(usage.get("prompt_tokens")),
            cached_tokens=count_in(details.get("cached_tokens")),
            completion_tokens=count_in(usage.get("completion_tokens")),
            milliseconds=(time.perf_counter() - began) * 1000,
        )

    async def chat(self, request: ChatRequest, listener: ChatListener | None) -> ChatResult:
        """Answer a chat; raises `EngineUnavailable`.

        Text with a special token's string is refused: without the passage the model would answer
        about, or write, another text than the one that is meant.
        """
        if found := next(filter(None, (SPECIAL.search(m.content) for m in request.messages)), None):
            raise EngineUnavailable(
                f"The text holds {found[0]!r}, which {self.client.name} would take for a command "
                "to the model: ask our own engine, to which it is text."
            )
        body = chat_body(request)
        if self.model is not None:
            body["model"] = self.model
        try:
            return await stream_chat(
                self.client, f"{self._prefix}/chat/completions", body, listener
            )
        except Refused as refusal:
            if refusal.status not in (404, 405, 501):
                raise
            raise NoChatModel(
                f"{self.client.name} does not chat with {self.model}: set `models.chat`. {refusal}"
            ) from refusal

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()


def _segment(segment: ContextSegment, with_text: bool) -> dict[str, Any]:
    place: dict[str, Any] = {
        "hash": segment.hash,
        "path": segment.path,
        "zone": segment.zone,
        "hot": segment.hot,
    }
    if segment.superseded:
        place["superseded"] = segment.superseded
    return place | ({"text": segment.text} if with_text else {})


def _message(answer: dict[str, Any]) -> str:
    return str(object_in(answer.get("error")).get("message", "no reason given"))


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise EngineUnavailable(f"{name} sent a completion without text.")
    return value
