"""What is asked of the engine and what it answers: plain values, without torch.

The HTTP service makes a `GenerationRequest` of a body, `generate.py` runs it and answers with
`Chunk`s and one `Finished`. The service imports this module before torch is there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["eos", "word", "limit"]
"""Ended by a stop id, by a stop string, or by a limit (tokens, context, time)."""


class RequestError(ValueError):
    """A request that cannot be served as it stands; the message quotes none of its text."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Filters apply in the order temperature, min-p, top-k, top-p."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    seed: int | None = None  # None draws one
    min_p: float = 0.0  # of the most probable token's probability; 0 keeps all


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and up to where in them the state will be of use to the next request."""

    ids: Sequence[int]
    keep: tuple[int, ...] = ()  # ascending numbers of tokens, each below len(ids)
    truncated: bool = False  # something of what was sent did not fit
    context_tokens: int = 0  # how many of the ids are those of a context in front
    superseded: tuple[tuple[int, int], ...] = ()  # spans of ids that say what is no longer so


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion.

    `prompt` runs on the model's thread, in the job's first steps; it may raise `RequestError`.
    """

    prompt: Callable[[], Prompt]
    max_tokens: int
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # how many alternatives per token; None computes none
    echo: bool = False  # with `logprobs`: the prompt's tokens too
    cache_prompt: bool = True
    max_predict_seconds: float | None = None  # honoured once a line is complete
    prepare: Callable[[], Iterator[None]] = lambda: iter(())  # steps to take before `prompt`
    tells_reading: bool = False  # chunks without text say how far the prompt is read


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities under the untempered distribution.

    `logprob` is None for the first token of a prompt, which nothing predicts.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]  # (token id, log-probability), most probable first


@dataclass(frozen=True, slots=True)
class PromptRead:
    """How many of a prompt's `total` tokens are read; `cached` of them were known before."""

    read: int
    cached: int
    total: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text that is certain to be in the answer, and its tokens if they were asked for.

    Before the first text, if that was asked for: how far the prompt is read.
    """

    text: str
    tokens: tuple[TokenLogprobs, ...] = ()
    reading: PromptRead | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """How a completion ended and what it cost.

    Seconds are wall time, waiting for more urgent work included.
    """

    reason: FinishReason
    stopping_word: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    context_tokens: int
    truncated: bool
    drafted_tokens: int  # proposed by prompt lookup, and verified
    accepted_tokens: int  # those of them that were chosen
    prompt_seconds: float
    predicted_seconds: float


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What bringing the state up to a layout cost.

    Of its tokens, `reused` were known already: some of them `restored`, from disk.
    """

    reused: int
    restored: int
    computed: int
    seconds: float  # wall time, waiting for more urgent work included


@dataclass(frozen=True, slots=True)
class CacheView:
    """What is kept: where one text can be resumed, and the bytes of all texts."""

    checkpoints: tuple[int, ...]
    nbytes: int
    max_bytes: int
    disk_nbytes: int | None  # None: nothing is kept on disk
    disk_max_bytes: int | None
