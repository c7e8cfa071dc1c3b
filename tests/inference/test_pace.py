"""How far the host runs ahead of a device, whose events are simulated."""

import pytest
import torch
from qcn_inference.pace import AHEAD, Pace


class Events:
    """Stands for `torch.cuda.Event`; notes what was recorded and what was waited for, by number."""

    def __init__(self) -> None:
        self.recorded = 0
        self.awaited: list[int] = []

    def __call__(self) -> "_Event":
        self.recorded += 1
        return _Event(self, self.recorded - 1)


class _Event:
    def __init__(self, events: Events, number: int) -> None:
        self._events, self._number = events, number

    def record(self, stream: object) -> None:
        pass

    def synchronize(self) -> None:
        self._events.awaited.append(self._number)


def test_a_layer_is_queued_only_when_the_last_but_one_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = Events()
    monkeypatch.setattr(torch.cuda, "Event", events)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    pace = Pace(torch.device("cuda", 0))
    for layer in range(10):
        pace.layer_queued()
        in_flight = events.recorded - len(events.awaited)
        assert events.awaited == list(range(max(0, layer - AHEAD)))
        assert in_flight <= AHEAD + 1


def test_on_the_cpu_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    events = Events()
    monkeypatch.setattr(torch.cuda, "Event", events)
    pace = Pace(torch.device("cpu"))
    pace.layer_queued()
    assert events.recorded == 0
