"""Who runs next, and what cancelling and superseding cost: counted in steps, not in seconds."""

import threading
from collections.abc import Generator
from concurrent.futures import CancelledError, Future

import pytest
from deadlines import DEADLINE_SECONDS
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from qcn_inference.scheduler import Closed, Priority, QueueFull, Scheduler, Superseded
from sampling import examples

Job = Generator[None, None, str]


def job(name: str, log: list[str], steps: int = 3) -> Job:
    """Log each step; return the name."""
    try:
        for _ in range(steps - 1):
            log.append(name)
            yield
        log.append(name)
        return name
    except GeneratorExit:
        log.append(f"{name} dropped")
        raise


def run_out(scheduler: Scheduler) -> None:
    while scheduler.step():
        pass


def test_first_come_first_served_to_the_end() -> None:
    log: list[str] = []
    scheduler = Scheduler()
    futures = [scheduler.submit(job(name, log, 2)) for name in "abc"]
    run_out(scheduler)
    assert log == ["a", "a", "b", "b", "c", "c"]
    assert [future.result(0) for future in futures] == ["a", "b", "c"]


def test_the_more_urgent_runs_before_the_less_urgent_goes_on() -> None:
    log: list[str] = []
    scheduler = Scheduler()
    scheduler.submit(job("refresh", log), priority=Priority.REFRESH)
    scheduler.step()
    scheduler.submit(job("chat", log, 1), priority=Priority.CHAT)
    scheduler.submit(job("completion", log, 2))
    run_out(scheduler)
    assert log == ["refresh", "completion", "completion", "chat", "refresh", "refresh"]


def test_a_cancelled_job_makes_no_further_step() -> None:
    log: list[str] = []
    scheduler = Scheduler()
    running, waiting = scheduler.submit(job("a", log)), scheduler.submit(job("b", log))
    scheduler.step()
    assert running.cancel()
    assert waiting.cancel()
    scheduler.submit(job("c", log, 1))
    run_out(scheduler)
    assert log == ["a", "a dropped", "c"]
    with pytest.raises(CancelledError):
        running.result(0)


def test_a_newer_job_with_the_key_takes_the_place() -> None:
    log: list[str] = []
    scheduler = Scheduler()
    older = scheduler.submit(job("older", log), supersede="document")
    other = scheduler.submit(job("other", log, 1), supersede="another document")
    scheduler.step()
    newer = scheduler.submit(job("newer", log, 1), supersede="document")
    # Answered at once, before the model's thread has looked.
    assert isinstance(older.exception(0), Superseded)
    run_out(scheduler)
    assert log == ["older", "older dropped", "other", "newer"]
    assert (other.result(0), newer.result(0)) == ("other", "newer")


def test_a_job_that_raises_fails_alone() -> None:
    def failing() -> Job:
        yield
        raise OSError("no more memory")

    log: list[str] = []
    scheduler = Scheduler()
    failed, fine = scheduler.submit(failing()), scheduler.submit(job("b", log, 1))
    run_out(scheduler)
    assert isinstance(failed.exception(0), OSError)
    assert fine.result(0) == "b"


def test_a_job_that_raises_when_dropped_disturbs_nobody() -> None:
    def clinging() -> Job:
        try:
            yield
        finally:
            raise OSError("on the way out")
        return "never"

    log: list[str] = []
    scheduler = Scheduler()
    clung = scheduler.submit(clinging())
    scheduler.step()
    clung.cancel()
    fine = scheduler.submit(job("b", log, 1))
    run_out(scheduler)
    assert fine.result(0) == "b"


def test_a_job_is_known_by_its_key_until_it_ends() -> None:
    scheduler = Scheduler()
    scheduler.submit(job("a", [], 2), supersede="context")
    scheduler.step()
    assert scheduler.has("context")
    assert not scheduler.has("another context")
    run_out(scheduler)
    assert not scheduler.has("context")


def test_a_full_queue_refuses_and_a_superseded_place_counts_as_free() -> None:
    log: list[str] = []
    scheduler = Scheduler(limit=2)
    scheduler.submit(job("a", log))
    scheduler.submit(job("b", log), supersede="k")
    with pytest.raises(QueueFull):
        scheduler.submit(job("c", log))
    scheduler.submit(job("d", log), supersede="k")
    assert scheduler.live_jobs == 2


def test_closing_settles_everything_and_ends_the_thread() -> None:
    log: list[str] = []
    scheduler = Scheduler()
    in_step, may_go_on = threading.Event(), threading.Event()

    def slow() -> Job:
        in_step.set()
        may_go_on.wait()
        yield
        raise AssertionError("advanced after close")

    thread = threading.Thread(target=scheduler.run, args=(lambda: None,))
    futures = [scheduler.submit(slow()), scheduler.submit(job("b", log))]
    thread.start()
    in_step.wait()
    scheduler.close()
    assert all(isinstance(future.exception(0), Closed) for future in futures)
    may_go_on.set()
    thread.join()
    assert "b" not in log
    with pytest.raises(Closed):
        scheduler.submit(job("c", log))


def test_idle_is_told_when_the_queue_has_run_dry() -> None:
    log: list[str] = []
    scheduler = Scheduler()
    idle = threading.Event()
    thread = threading.Thread(target=scheduler.run, args=(idle.set,))
    future = scheduler.submit(job("a", log))
    thread.start()
    assert future.result(DEADLINE_SECONDS) == "a"
    assert idle.wait(DEADLINE_SECONDS)
    scheduler.close()
    thread.join()


@examples(sample=100, full=1000)
class SchedulerRules(RuleBasedStateMachine):
    """Any order of submitting, superseding, cancelling and stepping, against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(limit=5)
        self.log: list[str] = []
        # Per job in the order of submission: its future, rank, key, and steps left.
        self.jobs: list[tuple[Future[str], Priority, str | None]] = []
        self.left: dict[str, int] = {}

    def live(self) -> list[int]:
        return [n for n, (future, _, _) in enumerate(self.jobs) if not future.done()]

    @rule(
        priority=st.sampled_from(Priority),
        key=st.none() | st.sampled_from("xy"),
        steps=st.integers(1, 3),
    )
    def submit(self, priority: Priority, key: str | None, steps: int) -> None:
        replaced = [n for n in self.live() if key is not None and self.jobs[n][2] == key]
        fits = len(self.live()) - len(replaced) < 5
        name = str(len(self.jobs))
        try:
            future = self.scheduler.submit(
                job(name, self.log, steps), priority=priority, supersede=key
            )
        except QueueFull:
            assert not fits
        else:
            assert fits
            self.jobs.append((future, priority, key))
            self.left[name] = steps
        for n in replaced:
            assert isinstance(self.jobs[n][0].exception(0), Superseded)

    @rule(n=st.integers(0, 20))
    def cancel(self, n: int) -> None:
        if n < len(self.jobs):
            was_live = n in self.live()
            assert self.jobs[n][0].cancel() == (was_live or self.jobs[n][0].cancelled())

    @rule()
    def step(self) -> None:
        live = self.live()
        expected = str(min(live, key=lambda n: (self.jobs[n][1], n))) if live else None
        self.log.clear()
        assert self.scheduler.step() == (expected is not None)
        assert [name for name in self.log if "dropped" not in name] == [expected][: len(live)]
        if expected is not None:
            self.left[expected] -= 1
            future = self.jobs[int(expected)][0]
            assert future.done() == (self.left[expected] == 0)

    @invariant()
    def counts(self) -> None:
        assert self.scheduler.live_jobs == len(self.live())


TestSchedulerRules = pytest.mark.long(SchedulerRules.TestCase)
