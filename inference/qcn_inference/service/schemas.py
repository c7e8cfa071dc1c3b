"""The bodies of requests, checked strictly: a number as a string is an error that names its field.

Fields that a dialect has and we do not are ignored where leaving them out changes only speed or
style, as llama.cpp does with fields it does not know; where they would change what is asked for,
they are refused.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from qcn_inference.request import SamplingParams
from qcn_inference.scheduler import Priority

MAX_LOGPROBS = 20
MAX_STOPS = 16
MOST_SEGMENTS = 100_000
Temperature = Annotated[float, Field(ge=0, le=100)]
TopP = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=-1, lt=2**63)]
Neutral = Annotated[float, Field(ge=0, le=0)]  # accepted, since it changes nothing
Token = Annotated[int, Field(ge=0)]
PRIORITIES = {priority.name.lower(): priority for priority in Priority}


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Stops = Annotated[list[str] | None, BeforeValidator(_as_list), Field(max_length=MAX_STOPS)]


class Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class Sampled(Body):
    """What the completion calls share.

    `priority`, `supersede` and `context` are ours.
    """

    stop: Stops = None
    seed: Seed | None = None  # -1 draws one, as in llama.cpp
    stream: bool | None = None
    priority: Literal["completion", "chat", "refresh", "compaction"] = "completion"
    supersede: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    context: Annotated[str, Field(min_length=1, max_length=1000)] | None = None

    @property
    def rank(self) -> Priority:
        """The scheduler's priority."""
        return PRIORITIES[self.priority]

    @property
    def drawn_seed(self) -> int | None:
        """The seed, or None where one is to be drawn."""
        return None if self.seed == -1 else self.seed


class StreamOptions(Body):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class OpenAIBody(Sampled):
    """What OpenAI's two calls share; a null means the default."""

    model: str | None = None
    temperature: Temperature | None = 1.0
    top_p: TopP | None = 1.0
    top_k: Annotated[int, Field(ge=-1)] | None = None  # not OpenAI's; vLLM's and llama.cpp's
    min_p: TopP | None = None  # likewise
    n: Literal[1] | None = 1
    presence_penalty: Neutral | None = 0.0
    frequency_penalty: Neutral | None = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop")
    @classmethod
    def _stops_are_not_empty(cls, stop: list[str] | None) -> list[str] | None:
        if stop and not all(stop):
            raise ValueError("a stop string must not be empty")
        return stop

    @property
    def sampling(self) -> SamplingParams:
        """How tokens are chosen."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(0, self.top_k or 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.drawn_seed,
            min_p=self.min_p or 0.0,
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends in an event that tells the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(OpenAIBody):
    """`POST /v1/completions`, as OpenAI defines it."""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    best_of: Literal[1] | None = 1
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = False

    @model_validator(mode="after")
    def _fits_together(self) -> "CompletionBody":
        match self.prompt:
            case [] | [[]] | "" if self.suffix is None:
                raise ValueError("prompt: holds no token")
            case [str() | list(), _, *_]:
                raise ValueError("prompt: one prompt a request is served")
        if self.suffix is not None and not isinstance(self.one_prompt, str):
            raise ValueError("suffix: goes with a prompt that is text")
        if self.suffix is not None and self.echo:
            raise ValueError("suffix: cannot be combined with echo")
        if self.context is not None and self.echo:
            raise ValueError("context: cannot be combined with echo")
        return self

    @property
    def one_prompt(self) -> str | list[int]:
        """The prompt, out of a list of one."""
        if isinstance(self.prompt, str):
            return self.prompt
        match self.prompt:
            case [str(only)] | [list(only)]:
                return only
            case prompt:
                return prompt  # type: ignore[return-value]  # text or ids: others are refused above


class ExtraFile(Body):
    """A file of llama.cpp's `input_extra`."""

    filename: str = ""
    text: str


class InfillBody(Sampled):
    """`POST /infill`, as llama.cpp's editor plugins send it, with `filename` and `repo_name` added.

    Accepted and without effect: `samplers`, `n_indent`, `id_slot`, `t_max_prompt_ms`, `lora`, and
    whatever else llama.cpp's completion call takes.
    """

    input_prefix: str = ""
    input_suffix: str = ""
    prompt: str = ""  # the current line before the cursor
    input_extra: list[ExtraFile] = []
    filename: str = ""
    repo_name: str = ""
    n_predict: Annotated[int, Field(ge=-1)] = 128
    temperature: Temperature = 0.0
    top_k: int = 40
    top_p: TopP = 0.95
    t_max_predict_ms: float = 0  # 0 is no limit
    cache_prompt: bool = True
    response_fields: list[str] = []

    @property
    def sampling(self) -> SamplingParams:
        """Greedy unless a temperature is given."""
        return SamplingParams(self.temperature, max(0, self.top_k), self.top_p, self.drawn_seed)


class SegmentBody(Body):
    """A segment in its place; its text only where the engine does not know it."""

    hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    path: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00\r\n]+$")]
    zone: Literal["base", "overlay"] = "base"
    hot: bool = False
    text: str | None = None
    superseded: list[tuple[Annotated[int, Field(ge=0)], int]] = []
    """Spans of lines of the text that say what is no longer so: nothing is copied from them."""

    @field_validator("superseded")
    @classmethod
    def _spans_follow_each_other(cls, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        bounds = [bound for span in spans for bound in span]
        if any(start >= end for start, end in spans) or bounds != sorted(bounds):
            raise ValueError("each span must end behind its start, and before the next begins")
        return spans


class ContextBody(Body):
    """`PUT /v1/contexts/{id}`: a layout; the answer comes when it is read, or at once."""

    wait: bool = True
    dialect: Literal["fim", "chat"] = "fim"
    repo: Annotated[str, Field(max_length=1000, pattern=r"^[^\r\n]*$")] = ""
    segments: Annotated[list[SegmentBody], Field(max_length=MOST_SEGMENTS)]


class TokenizeBody(Body):
    """`POST /tokenize`, llama.cpp's.

    `add_special` is without effect: these models open no text with a token.
    """

    content: str
    add_special: bool = False
    parse_special: bool = False
    with_pieces: bool = False
    count_only: bool = False  # ours: how many, not which


class DetokenizeBody(Body):
    """`POST /detokenize`, llama.cpp's."""

    tokens: list[Token]


class ShutdownBody(Body):
    """`POST /shutdown`."""

    when: Literal["idle", "now"] = "idle"


def lenient_stops(stop: list[str] | None) -> tuple[str, ...]:
    """llama.cpp ignores empty stop strings."""
    return tuple(word for word in stop or () if word)
