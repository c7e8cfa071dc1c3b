"""How long a completion waits that is asked for while a text is read: the engine's own scheduler.

A long text is read as a context is refreshed. At random moments meanwhile a completion is asked for
behind another text that is known, and one token of it generated. It waits from the moment it is
asked for until the device has done what was queued in front of it; then it is read like any other.
"""

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch

from qcn_inference.device import make_current
from qcn_inference.generate import Loaded
from qcn_inference.grid import Grid
from qcn_inference.model import Model
from qcn_inference.request import Finished, GenerationRequest, Prompt, Refreshed, SamplingParams
from qcn_inference.scheduler import Priority, Scheduler, Steps
from qcn_inference.state_cache import StateCache
from qcn_inference.tokenizer import Tokenizer

BEHIND, TAIL = 2048, 300
"""Tokens of the text behind which is completed, and of what each completion reads of its own."""
QUIET = 5  # completions while nothing else runs
CACHE_PART = 8  # of the host's memory, as the engine takes beside a GPU


@dataclass(frozen=True, slots=True)
class Spread:
    """Many measurements, in seconds. The 95th percentile is interpolated between two of them."""

    count: int
    median: float
    p95: float
    most: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        """Sum up at least two."""
        p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
        return cls(len(seconds), statistics.median(seconds), p95, max(seconds))


@dataclass(frozen=True, slots=True)
class Waits:
    """What was measured while `tokens` were read."""

    tokens: int
    refresh_seconds: float  # to read them with nothing else to do
    wait: Spread  # until the device was free for the completion
    first_token: Spread  # until its first token, the wait among it
    first_token_quiet: Spread  # the same while nothing else runs


def engine_of(model: Model, folder: Path) -> Loaded:
    """Put an engine around a model, with the tokenizer in a folder; its ids must be the model's."""
    tokenizer = Tokenizer(folder, model.config.vocab_size)
    room = psutil.virtual_memory().total // CACHE_PART
    return Loaded(model, tokenizer, StateCache(model.config, Grid(tokenizer), room))


def waits(engine: Loaded, tokens: int, tries: int, report: Callable[[str], None]) -> Waits:
    """Ask `tries` times while `tokens` tokens are read, again and again if need be.

    Args:
        engine: no one else uses it.
        tokens: of the text that is read; fewer where the model's context is shorter.
        tries: at least 2.
        report: told what was measured as it becomes known.
    """
    tokens = min(tokens, engine.context_length)
    engine.model.warm_up()
    with _working(engine) as scheduler:
        asking = _Asking(engine, scheduler)
        quiet = [asking.ask(None) for _ in range(QUIET + 1)][1:]  # the first reads all in front
        report(f"a completion takes {statistics.median(q.first_token for q in quiet):.3f} s alone")
        alone = asking.refresh(tokens).result().seconds
        report(f"{tokens:,} tokens take {alone:.1f} s alone")
        beside: list[_Answered] = []
        refresh = asking.refresh(tokens)
        while len(beside) < tries:
            if refresh.done():
                refresh = asking.refresh(tokens)
            # All pauses take two thirds of a refresh's time: completions take some on top.
            time.sleep(asking.draw.uniform(0, 4 / 3 * alone / tries))
            answered = asking.ask(refresh)
            if answered.counts:
                beside.append(answered)
                took = f"{answered.wait:.3f} s, its first token {answered.first_token:.3f} s"
                report(f"completion {len(beside)} of {tries} waited {took}")
        refresh.cancel()
    return Waits(
        tokens=tokens,
        refresh_seconds=alone,
        wait=Spread.of([one.wait for one in beside]),
        first_token=Spread.of([one.first_token for one in beside]),
        first_token_quiet=Spread.of([one.first_token for one in quiet]),
    )


@dataclass(slots=True)
class _Answered:
    """One completion; seconds from the moment it was asked for."""

    wait: float = 0.0
    first_token: float = 0.0
    counts: bool = False  # whether the other text was still being read when its turn came


class _Asking:
    """Asks an engine on another thread, with texts drawn at random."""

    def __init__(self, engine: Loaded, scheduler: Scheduler) -> None:
        self.draw = random.Random(0)
        self._engine = engine
        self._scheduler = scheduler
        self._front = self._text(BEHIND)

    def refresh(self, tokens: int) -> Future[Refreshed]:
        """Have a new text read."""
        return self._scheduler.submit(
            self._engine.refresh(self._text(tokens), ()), priority=Priority.REFRESH
        )

    def ask(self, meanwhile: Future[Refreshed] | None) -> _Answered:
        """Await a completion, while another text may be read."""
        request = GenerationRequest(
            prompt=partial(Prompt, [*self._front, *self._text(TAIL)], (BEHIND,)),
            max_tokens=1,
            sampling=SamplingParams(temperature=0),
        )
        answered = _Answered()

        def noted() -> Steps[Finished]:
            """The completion, behind what the device has still to do when it is its turn."""
            answered.counts = meanwhile is not None and not meanwhile.done()
            if self._engine.model.device.type == "cuda":
                torch.cuda.current_stream(self._engine.model.device).synchronize()
            answered.wait = time.perf_counter() - asked
            return (yield from self._engine.generate(request, lambda _: None))

        asked = time.perf_counter()
        self._scheduler.submit(noted()).result()
        answered.first_token = time.perf_counter() - asked
        return answered

    def _text(self, tokens: int) -> list[int]:
        """Tokens of which none is a control token."""
        plain = min(self._engine.tokenizer.control_ids)  # which come last
        return self.draw.choices(range(plain), k=tokens)


@contextmanager
def _working(engine: Loaded) -> Iterator[Scheduler]:
    """A scheduler on a thread of its own, as the service has it."""
    scheduler = Scheduler()

    def work() -> None:
        make_current(engine.model.device)
        with torch.inference_mode():
            scheduler.run(when_idle=engine.cache.check_integrity)

    thread = threading.Thread(target=work, name="model")
    thread.start()
    try:
        yield scheduler
    finally:
        scheduler.close()
        thread.join()
