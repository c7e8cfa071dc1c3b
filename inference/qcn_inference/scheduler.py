"""Who uses the model next.

Purpose: one model, one thread, many requests of different urgency. A job is a generator that yields
wherever it may be interrupted: between two layers of a prefill, and between two decoded tokens.
Before every step the scheduler looks again for the most urgent job, so a completion that arrives
during a background refresh runs after one layer, not after one chunk.

Guarantees:
- Only the thread in `run` advances or closes a job. All else may be called from any thread.
- Among live jobs the highest priority goes first, among equals the one submitted first, each to its
  end unless something more urgent arrives.
- A job that is cancelled or superseded is answered at once and does at most the step that it is in
  the middle of.
- Every job's future is settled exactly once: result, exception, or cancellation. A job that raises
  fails alone.
- At most `limit` jobs are live. One more is refused, not queued: an editor has long given up on it.

Failure modes: a step that never yields blocks everything behind it; that is the job's defect. A
stream of urgent work starves the less urgent: a refresh waits while somebody types, which is
wanted.

Rejected: batching several completions into one decode step. The users of one machine seldom type at
the same instant, a newer request replaces an older one of the same document, and a batch would tie
exactness to who else is there.
"""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]


class Priority(IntEnum):
    """Most urgent first: a completion the user waits for, chat, refresh, compaction."""

    COMPLETION = 0
    CHAT = 1
    REFRESH = 2
    COMPACTION = 3


class QueueFull(Exception):  # noqa: N818 (named like queue.Full)
    """Too many jobs are live; try again later."""


class Superseded(Exception):  # noqa: N818 (an outcome, not an error of the program)
    """A newer job with the same key has taken this one's place."""


class Closed(Exception):  # noqa: N818 (an outcome, not an error of the program)
    """The scheduler is closing: the engine leaves."""


@dataclass(eq=False, slots=True)
class _Job(Generic[T]):
    steps: Steps[T]
    future: Future[T]
    rank: tuple[Priority, int]
    key: str | None


class Scheduler:
    """Runs jobs on the thread that calls `run`."""

    def __init__(
        self, limit: int = 64, *, after_error: Callable[[Exception], None] = lambda _: None
    ) -> None:
        """`after_error` hears of what a job raised; what it raises itself ends `run`."""
        self._limit = limit
        self._after_error = after_error
        self._changed = threading.Condition()
        self._jobs: list[_Job[Any]] = []
        self._numbers = count()
        self._closed = False

    def submit(
        self,
        steps: Steps[T],
        *,
        priority: Priority = Priority.COMPLETION,
        supersede: str | None = None,
    ) -> Future[T]:
        """Queue a job that has not been started; its future may be cancelled at any time.

        A live job with the same `supersede` key ends with `Superseded`, also when the new one finds
        the queue full.

        Raises:
            QueueFull, Closed: the job was not taken; `steps` is not touched.
        """
        future: Future[T] = Future()
        with self._changed:
            live = [job for job in self._jobs if not job.future.done()]
            older = [job for job in live if supersede is not None and job.key == supersede]
            taken = not self._closed and len(live) - len(older) < self._limit
            if taken:
                self._jobs.append(_Job(steps, future, (priority, next(self._numbers)), supersede))
                self._changed.notify()
        # Outside the lock: settling a future runs its callbacks.
        for job in older:
            _settle(job.future, Superseded())
        if not taken:
            raise Closed if self._closed else QueueFull
        return future

    def has(self, key: str) -> bool:
        """Whether a job that was submitted under this key waits or runs."""
        with self._changed:
            return any(job.key == key and not job.future.done() for job in self._jobs)

    @property
    def live_jobs(self) -> int:
        """How many jobs are waiting or running."""
        with self._changed:
            return sum(not job.future.done() for job in self._jobs)

    def run(self, when_idle: Callable[[], None]) -> None:
        """Work until `close` is called; call `when_idle` each time there is nothing left to do."""
        while self._wait_for_work():
            while self.step():
                pass
            when_idle()
        for job in self._jobs:
            _end(job)

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            return not self._closed

    def step(self) -> bool:
        """Drop settled jobs and advance the most urgent one by one step; False if there is none."""
        with self._changed:
            settled = [job for job in self._jobs if job.future.done()]
            self._jobs = [job for job in self._jobs if not job.future.done()]
            job = min(self._jobs, key=lambda job: job.rank, default=None)
        for old in settled:
            _end(old)
        if job is None:
            return False
        try:
            next(job.steps)
        except StopIteration as end:
            with suppress(InvalidStateError):  # cancelled during its last step
                job.future.set_result(end.value)
        except Exception as error:
            _settle(job.future, error)
            self._after_error(error)
        return True

    def close(self) -> None:
        """Settle all jobs with `Closed`, take no more, and end `run` after the step it is in."""
        with self._changed:
            self._closed = True
            jobs = list(self._jobs)
            self._changed.notify()
        for job in jobs:
            _settle(job.future, Closed())


def _settle(future: Future[Any], error: BaseException) -> None:
    with suppress(InvalidStateError):  # already settled
        future.set_exception(error)


def _end(job: _Job[Any]) -> None:
    """Let a job that will not go on release what it holds.

    What it raises on the way out concerns nobody any more.
    """
    with suppress(Exception):
        job.steps.close()
