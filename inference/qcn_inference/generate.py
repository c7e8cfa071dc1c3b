"""One completion, step by step: prompt, prefill, decode, with or without drafts.

`Loaded.generate` is a job for the scheduler: it yields between layers of the prefill and between
tokens. What it allocates belongs to it alone and goes with it, so it may be dropped at any yield.
"""

import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from torch import Tensor

from qcn_inference.decoding import Decoding, Stepper
from qcn_inference.device import is_out_of_memory
from qcn_inference.disk_cache import DiskCache, in_background
from qcn_inference.lookup import BlockIndexes
from qcn_inference.model import Model
from qcn_inference.passes import PassLimits
from qcn_inference.request import (
    CacheView,
    Chunk,
    Finished,
    GenerationRequest,
    Prompt,
    PromptRead,
    Refreshed,
    RequestError,
    TokenLogprobs,
)
from qcn_inference.sampling import token_logprobs
from qcn_inference.speculation import Speculation
from qcn_inference.state import State
from qcn_inference.state_cache import Reading, StateCache
from qcn_inference.tokenizer import Tokenizer

log = logging.getLogger(__name__)

T = TypeVar("T")

# Logits of a whole prompt are taken in pieces: 256 x 151,936 in fp32 are 156 MB, and four times
# that in passing.
ECHO_PIECE = 256


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready, and what goes with it. Used by the model's thread alone."""

    model: Model
    tokenizer: Tokenizer
    cache: StateCache
    disk: DiskCache | None = None
    indexes: BlockIndexes = field(default_factory=BlockIndexes)

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and completion may have together."""
        return self.model.config.max_position_embeddings

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens on which generation ends."""
        return self.tokenizer.stop_ids | frozenset(self.model.config.eos_token_ids)

    def generate(
        self, request: GenerationRequest, emit: Callable[[Chunk], None]
    ) -> Generator[None, None, Finished]:
        """The steps that answer `request` through `emit`; they return how it ended.

        Raises:
            RequestError: the prompt cannot be served.
        """
        started = time.perf_counter()
        yield from request.prepare()
        prompt = request.prompt()
        _check_prompt(self, prompt)
        yield
        decoding, cached = yield from self._begin(request, prompt, emit)
        limit = min(request.max_tokens, self.context_length - len(prompt.ids))
        reason, word = yield from decoding.run(limit, partial(self._read_again, request, prompt))
        return Finished(
            reason=reason,
            stopping_word=word,
            prompt_tokens=len(prompt.ids),
            cached_tokens=cached,
            completion_tokens=decoding.count,
            context_tokens=prompt.context_tokens,
            truncated=prompt.truncated,
            drafted_tokens=decoding.drafted,
            accepted_tokens=decoding.accepted,
            prompt_seconds=decoding.began - started,
            predicted_seconds=time.perf_counter() - decoding.began,
        )

    def _begin(
        self, request: GenerationRequest, prompt: Prompt, emit: Callable[[Chunk], None]
    ) -> Generator[None, None, tuple[Decoding, int]]:
        """Read the prompt; what decodes behind it, and the number of tokens that were cached."""
        state, logits, cached = yield from _read_prompt(self, request, prompt, emit)
        decoding = Decoding(self.model, self.tokenizer, self.stop_ids, request, emit)
        stepper = yield from self._speculation(state, prompt, keep=request.cache_prompt)
        decoding.begin(stepper, logits)
        return decoding, cached

    def _read_again(
        self, request: GenerationRequest, prompt: Prompt, chosen: Sequence[int]
    ) -> Generator[None, None, tuple[State, Tensor]]:
        """Read what was generated too, as `decoding.ReadAgain`."""
        whole = replace(prompt, ids=[*prompt.ids, *chosen])
        reading = _reading(self.cache, request, whole)
        return (yield from _read(self.model, reading, whole, self.model.pass_limits.smaller()))

    def refresh(
        self, ids: Sequence[int], keep: Sequence[int], *, context: str = "", repo: str | None = None
    ) -> Generator[None, None, Refreshed]:
        """The steps that read a layout, so that what comes behind it can begin there.

        Args:
            ids: the layout.
            keep: positions in it that are worth a checkpoint.
            context: whose it is: of each context only the newest layout waits to be written.
            repo: under whose name it is kept on disk too; None keeps it in memory only.
        """
        started = time.perf_counter()
        in_memory = len(ids) - self.unread(ids)
        if repo is not None:
            yield from self.restore(ids, repo, self.cache.max_bytes)
        known: list[int] = []

        def read(limits: PassLimits) -> Generator[None, None, None]:
            reading = self.cache.read(ids, keep, for_logits=False)
            known.append(reading.position)
            state = reading.start(self.model)
            for part in reading.passes(limits):
                yield from self.model.prefill_steps(ids[part.start : part.end], state, part)
                for _ in reading.taking(part, state):
                    self._keep_on_disk(ids, context, repo)
                    yield
                yield
            if not reading.blocks:
                self._keep_on_disk(ids, context, repo)  # it is in use

        yield from in_smaller_passes(self.model, read)
        yield from self.indexes.lookup(self.cache.pieces(ids))
        seconds = time.perf_counter() - started
        before, *_ = known  # what a second try found was read by the first
        return Refreshed(before, max(0, before - in_memory), len(ids) - before, seconds)

    def restore(self, ids: Sequence[int], repo: str, max_bytes: int) -> Generator[None, None, None]:
        """Bring what is on disk of a text into memory, as far as it takes no more than this."""
        disk, forgotten = self.disk, self.cache.times_forgotten
        if disk is None or not disk.on:
            return
        pieces = self.cache.pieces(ids)
        front = [block for stretch in self.cache.stretches(ids) for block in stretch.blocks]
        if len(front) == len(pieces):
            return
        found = yield from in_background(partial(disk.find, repo, pieces, len(front)))
        # One by one, so that what a newer layout cuts short has not been in vain.
        for start, end, entry in found:
            max_bytes -= entry.nbytes
            if max_bytes < 0:
                return
            stretch = yield from in_background(partial(disk.read, entry, pieces[start:end]))
            if stretch is None or self.cache.times_forgotten != forgotten:
                return
            self.cache.put_back(front[:start], stretch)
            front = [*front[:start], *stretch.blocks]

    def _keep_on_disk(self, ids: Sequence[int], context: str, repo: str | None) -> None:
        if self.disk is not None and repo is not None:
            stretches = self.cache.stretches(ids)
            self.disk.keep(context, repo, stretches, self.model.memory.when_copied())

    def _speculation(
        self, state: State, prompt: Prompt, *, keep: bool
    ) -> Generator[None, None, Stepper]:
        """What steps behind a prompt; what is indexed of it stays for the next if it is to."""
        indexes = self.indexes if keep else BlockIndexes()
        lookup = yield from indexes.lookup(
            self.cache.pieces(prompt.ids), superseded=prompt.superseded, control=self.stop_ids
        )
        return Speculation(self.model, state, lookup)

    def unread(self, ids: Sequence[int]) -> int:
        """How many tokens of a text would have to be read to continue it."""
        return len(ids) - max(self.cache.checkpoints_of(ids), default=0)

    def forget(self, *beginnings: Sequence[int]) -> Generator[None, None, None]:
        """Drop all texts that begin so."""
        for ids in beginnings:
            self.cache.forget(ids)
        self.indexes.clear()
        yield

    def view(self, ids: Sequence[int]) -> Generator[None, None, CacheView]:
        """Look at what is kept of a text."""
        cache = self.cache
        yield
        disk = self.disk if self.disk is not None and self.disk.on else None
        return CacheView(
            tuple(cache.checkpoints_of(ids)),
            cache.nbytes,
            cache.max_bytes,
            None if disk is None else disk.nbytes,
            None if disk is None else disk.max_bytes,
        )


def _check_prompt(loaded: Loaded, prompt: Prompt) -> None:
    vocab_size = loaded.model.config.vocab_size
    if not prompt.ids:
        raise RequestError("the prompt holds no token")
    if len(prompt.ids) > loaded.context_length:
        raise RequestError(
            f"the prompt has {len(prompt.ids)} tokens, the context {loaded.context_length}"
        )
    if not 0 <= min(prompt.ids) <= max(prompt.ids) < vocab_size:
        raise RequestError(f"the prompt has token ids outside 0 to {vocab_size - 1}")


def _read_prompt(
    loaded: Loaded, request: GenerationRequest, prompt: Prompt, emit: Callable[[Chunk], None]
) -> Generator[None, None, tuple[State, Tensor, int]]:
    """The state behind the prompt, its last token's logits [V], the number of cached tokens."""
    if request.echo and request.logprobs is not None:
        state, logits = yield from _score_prompt(loaded.model, prompt, request.logprobs, emit)
        return state, logits, 0

    def tell(read: PromptRead) -> None:
        if request.tells_reading:
            emit(Chunk("", reading=read))

    def read(limits: PassLimits) -> Generator[None, None, tuple[State, Tensor, int]]:
        reading = _reading(loaded.cache, request, prompt)
        state, logits = yield from _read(loaded.model, reading, prompt, limits, tell)
        return state, logits, reading.position

    return (yield from in_smaller_passes(loaded.model, read))


def _reading(cache: StateCache, request: GenerationRequest, prompt: Prompt) -> Reading:
    return cache.read(prompt.ids, prompt.keep) if request.cache_prompt else cache.skip(prompt.ids)


def _read(
    model: Model,
    reading: Reading,
    prompt: Prompt,
    limits: PassLimits,
    tell: Callable[[PromptRead], None] = lambda _: None,
) -> Generator[None, None, tuple[State, Tensor]]:
    """Read what is not known of a prompt: the state behind it, its last token's logits [V].

    In front of each pass `tell` learns how far it is.
    """
    state = reading.start(model)
    for part in reading.passes(limits):
        tell(PromptRead(part.start, reading.position, len(prompt.ids)))
        ids = prompt.ids[part.start : part.end]
        logits = yield from model.prefill_steps(ids, state, part)
        for _ in reading.taking(part, state):
            yield
        yield
    return state, logits[-1]


def in_smaller_passes(
    model: Model, read: Callable[[PassLimits], Generator[None, None, T]]
) -> Generator[None, None, T]:
    """The steps of `read`; once more in smaller passes where the GPU's memory did not suffice.

    What lies there only to be at hand is dropped before. What the first try has put into the cache
    is not read again. Pages that other requests hold (DeviceMemoryError) no pass makes free.
    """
    try:
        return (yield from read(model.pass_limits))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Behind the handler: the error holds the frames of the failed pass, and they its tensors.
    log.warning("a pass did not fit the GPU's memory: the text is read in smaller ones")
    model.give_back()
    return (yield from read(model.pass_limits.smaller()))


def _score_prompt(
    model: Model, prompt: Prompt, count: int, emit: Callable[[Chunk], None]
) -> Generator[None, None, tuple[State, Tensor]]:
    """Read the prompt from nothing and emit the log-probabilities of its tokens."""
    state, ids = model.new_state(), prompt.ids
    emit(Chunk("", (TokenLogprobs(ids[0], None, ()),)))
    for at in range(0, len(ids), ECHO_PIECE):
        logits = yield from model.prefill_steps(ids[at : at + ECHO_PIECE], state, all_logits=True)
        following = ids[at + 1 : at + 1 + len(logits)]
        # The prompt's last token has no next: one row is left over.
        for row, token in zip(logits, following, strict=False):
            emit(Chunk("", (token_logprobs(row, token, count),)))
        yield
    return state, logits[-1]
