"""The loop from a prompt's last logits to the end of an answer, also where memory runs short.

Short of memory. Another program may take the GPU's memory in the middle of an answer. A step that
is refused some leaves a state of which a few layers have read a token and the others have not, so
it cannot simply be taken again. What is certain is the prompt and the tokens chosen so far. So all
that lies on the GPU only to save time is given back, that text is read again from its deepest
checkpoint (as vLLM recomputes a sequence it has preempted, arXiv 2309.06180), and the answer goes
on one token at a time: no drafts, no step ahead, no graph captured. A token counts as chosen when
all that is told of it is known; the random number of one that is not is drawn again. So no token is
lost or sampled twice, and the answer is the same as undisturbed, as far as `Model.prefill` and
`Model.decode` agree: to rounding. When it happens again the request fails, alone.

Rejected: a copy of the state in front of each step, 77 MB of an 80 B model for each token.
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from torch import Tensor

from qcn_inference.device import is_out_of_memory
from qcn_inference.model import Model
from qcn_inference.request import Chunk, FinishReason, GenerationRequest, TokenLogprobs
from qcn_inference.sampling import Sampler, StopStrings, token_logprobs
from qcn_inference.state import State
from qcn_inference.tokenizer import TextStream, Tokenizer

log = logging.getLogger(__name__)


class Stepper(Protocol):
    """What is behind each chosen token of one request."""

    drafted: int
    accepted: int

    def choose(self, sampler: Sampler, logits: Tensor, wanted: int) -> int:
        """Choose a token from the logits returned last, `wanted` more at most behind it."""

    def after(self, token: int, wanted: int) -> Tensor:
        """Return the logits [V] behind a token that was chosen; `wanted` more, these included."""


class OneByOne:
    """A step of the model for each token: takes as little memory as there can be."""

    drafted = 0
    accepted = 0

    def __init__(self, model: Model, state: State) -> None:
        """Go on from `state`, which becomes its own."""
        self._model = model
        self._state = state

    def choose(self, sampler: Sampler, logits: Tensor, wanted: int) -> int:
        """As `Stepper.choose`."""
        del wanted
        return int(sampler.draw(logits))

    def after(self, token: int, wanted: int) -> Tensor:
        """As `Stepper.after`."""
        del wanted
        return self._model.decode(token, self._state)


ReadAgain = Callable[[Sequence[int]], Generator[None, None, tuple[State, Tensor]]]
"""The steps that read the prompt and these tokens behind it, in as little memory as there can be:
the state, and the last logits [V]."""


class Decoding:
    """One answer. It holds the state, so that there is no other when that is to be let go."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        request: GenerationRequest,
        emit: Callable[[Chunk], None],
    ) -> None:
        self.began = time.perf_counter()  # the first logits are there
        self.drafted = 0
        self.accepted = 0
        self._model = model
        self._stop_ids = stop_ids
        self._logprobs = request.logprobs
        self._emit = emit
        seconds = request.max_predict_seconds
        self._deadline = math.inf if seconds is None else self.began + seconds
        self._sampler = Sampler(request.sampling)
        self._text = TextStream(tokenizer)
        self._stop_strings = StopStrings(request.stop)
        self._line_complete = False
        self._chosen: list[int] = []
        self._is_choosing = False
        self._stepper: Stepper | None = None
        self._logits: Tensor | None = None  # [V], behind what was chosen

    @property
    def count(self) -> int:
        """Tokens, a stop id not among them."""
        return len(self._chosen)

    def begin(self, stepper: Stepper, logits: Tensor) -> None:
        """Decode by `stepper`, first from `logits` [V]; the caller keeps neither."""
        self._stepper, self._logits = stepper, logits

    def run(
        self, limit: int, read_again: ReadAgain
    ) -> Generator[None, None, tuple[FinishReason, str]]:
        """Choose at most `limit` tokens. Returns why it ended, and the stop string met."""
        try:
            return (yield from self._until_end(limit))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Behind the handler: the error holds the frames of the failed step, and they its tensors.
        log.warning("a step did not fit the GPU's memory: it is taken again, without drafts")
        self._let_go()
        self._model.give_back()
        state, logits = yield from read_again(self._chosen)
        state.captures_graphs = False
        self.begin(OneByOne(self._model, state), logits)
        del state, logits
        return (yield from self._until_end(limit))

    def _let_go(self) -> None:
        """Forget the state, and a token that was drawn and not chosen."""
        if self._is_choosing:
            self._sampler.take_back()
        self._count_drafts()
        self._stepper = self._logits = None

    def _until_end(self, limit: int) -> Generator[None, None, tuple[FinishReason, str]]:
        """Drafts make no difference here: token by token is chosen, shown and held against what
        ends the text, wherever its logits came from.
        """
        stepper = self._stepper
        assert stepper is not None
        while self.count < limit:
            self._is_choosing = True
            assert self._logits is not None
            token = stepper.choose(self._sampler, self._logits, limit - self.count - 1)
            if token in self._stop_ids:
                return self._ended("eos")
            logprobs = self._logprobs_of(token)
            self._chosen.append(token)
            self._is_choosing = False
            word = self._take(token, logprobs)
            if word is not None:
                return self._ended("word", word)
            if self.count == limit or self._out_of_time():
                break
            self._logits = stepper.after(token, limit - self.count)
            yield
        return self._ended("limit")

    def _ended(self, reason: FinishReason, word: str = "") -> tuple[FinishReason, str]:
        if reason != "word":
            self._show(self._stop_strings.flush())
        self._count_drafts()
        return reason, word

    def _count_drafts(self) -> None:
        if self._stepper is not None:
            self.drafted += self._stepper.drafted
            self.accepted += self._stepper.accepted

    def _logprobs_of(self, token: int) -> tuple[TokenLogprobs, ...]:
        """What is told of a token with its text, if that was asked for."""
        if self._logprobs is None:
            return ()
        assert self._logits is not None
        return (token_logprobs(self._logits, token, self._logprobs),)

    def _take(self, token: int, logprobs: tuple[TokenLogprobs, ...]) -> str | None:
        """Show what a token makes certain; return the stop string it completes."""
        text, word = self._stop_strings.push(self._text.push(token))
        self._show(text, logprobs)
        return word

    def _show(self, text: str, tokens: tuple[TokenLogprobs, ...] = ()) -> None:
        self._line_complete = self._line_complete or "\n" in text
        if text or tokens:
            self._emit(Chunk(text, tokens))

    def _out_of_time(self) -> bool:
        return self._line_complete and time.perf_counter() > self._deadline
