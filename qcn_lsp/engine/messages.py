"""What the language server and the engine tell each other, as values without behaviour."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol


class EngineState(StrEnum):
    """Where the link to the engine stands."""

    STOPPED = "stopped"  # not asked for yet, or closed
    STARTING = "starting"  # its process is being started, or the endpoint contacted
    LOADING = "loading"  # it answers and reads the model
    READY = "ready"
    ERRORED = "errored"  # it cannot serve, and says why
    EXITED = "exited"  # it was ready once and is gone; the next request starts a new one


@dataclass(frozen=True)
class EngineStatus:
    """One state of the link, with what a user needs to know about it.

    `done` of `total` bytes of the model are read while `LOADING`; both are 0 elsewhere.
    """

    state: EngineState
    message: str = ""
    model: str | None = None
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class ContextFile:
    """Another file shown to the model in front of the current one."""

    path: str
    text: str


@dataclass(frozen=True)
class ContextSegment:
    """A part of what the model reads of a repository.

    `hash` is SHA-256 of path, a NUL and text, hexadecimal; `hot`: likely to change; `superseded`:
    spans of its lines that say what is no longer so.
    """

    hash: str
    path: str
    text: str
    zone: Literal["base", "overlay"]
    hot: bool = False
    superseded: tuple[tuple[int, int], ...] = ()


Dialect = Literal["fim", "chat"]


@dataclass(frozen=True)
class ContextLayout:
    """What the model reads of a repository, in its order, under a name of its own.

    Completions read it in the format that coder models were trained on, chats in their first turn.
    """

    name: str
    repo: str
    segments: tuple[ContextSegment, ...]
    dialect: Dialect = "fim"


@dataclass(frozen=True)
class CompletionRequest:
    """Text around the cursor, to be completed greedily.

    `context` names a layout that the engine was given, behind which the text is read; `extra` lists
    other open files, the most stable first. A newer request with the same `supersede` key ends this
    one. `max_tokens` counts the model's tokens.
    """

    prefix: str
    suffix: str
    path: str
    repo: str
    context: str | None = None
    extra: tuple[ContextFile, ...] = ()
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    supersede: str | None = None


@dataclass(frozen=True)
class CompletionResult:
    """The model's answer; counts are in tokens, `milliseconds` from request to answer."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    milliseconds: float
    context_tokens: int = 0  # of the prompt, those of the context that was named


@dataclass(frozen=True)
class ChatMessage:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatRequest:
    """Turns to be answered by the chat model; `max_tokens` counts the model's tokens.

    `context` names a layout in the chat's dialect that the engine was given: the repository then
    stands in front of the first turn. `temperature` 0 is greedy; a `seed` makes a run repeatable.
    A newer request with the same `supersede` key ends this one. `priority`: among what our engine
    is asked; that of a completion goes before chats.
    """

    messages: tuple[ChatMessage, ...]
    context: str | None = None
    max_tokens: int = 2048
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    supersede: str | None = None
    priority: Literal["completion", "chat"] = "chat"


@dataclass(frozen=True)
class ChatResult:
    """The chat model's answer; counts are in tokens, `milliseconds` from request to answer."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    milliseconds: float


class EngineUnavailable(Exception):  # noqa: N818 - the name of the state, as in the messages
    """The engine cannot be started, reached or used; str() is written for the user."""


class Unreachable(EngineUnavailable):
    """Nobody listens at the address, or one that is not ready: trying again loses nothing."""


class ConnectionLost(EngineUnavailable):
    """The connection broke after the request was sent."""


class NoAnswer(EngineUnavailable):
    """Somebody listens but does not answer in time."""


class UnknownContext(EngineUnavailable):
    """The engine does not know the context that was named: it was started anew, or was full."""


class NoChatModel(EngineUnavailable):
    """The model, or the endpoint, does not chat: it only completes."""


class Refused(EngineUnavailable):
    """An HTTP error with a readable reason; `status` is its code."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Superseded(Exception):  # noqa: N818 - an outcome, not an error
    """A newer request with the same key replaced this one."""


class ChatListener(Protocol):
    """Hears of an answer while it comes."""

    def reading(self, done: int, total: int) -> None:
        """Hear that `done` of the `total` tokens are read that the answer waits for.

        Of our own engine alone, before any text.
        """
        ...

    def wrote(self, text: str) -> None:
        """Hear the next piece of the answer."""
        ...


class Completer(Protocol):
    """Something that answers requests: our engine, or another endpoint."""

    model: str | None

    async def complete(self, request: CompletionRequest) -> CompletionResult:
        """Answer one request; raises `EngineUnavailable` or `Superseded`."""
        ...

    async def chat(self, request: ChatRequest, listener: ChatListener | None) -> ChatResult:
        """Answer a chat, of which `listener` hears as it comes; raises as `complete`."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
