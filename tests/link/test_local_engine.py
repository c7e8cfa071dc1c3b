"""The link finds, starts, shares, replaces and loses the engine on this machine."""

import asyncio
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from link_support import StandInModel, kill, processes_of, until

from qcn_lsp.engine.link import (
    CompletionRequest,
    ContextFile,
    EngineLink,
    EngineState,
    EngineStatus,
    EngineUnavailable,
    Failures,
    Superseded,
)
from qcn_lsp.engine.runtime import engine_key
from qcn_lsp.settings import EngineSettings

REQUEST = CompletionRequest(prefix="def f(", suffix=")\n", path="a.py", repo="r")

MakeLink = Callable[..., EngineLink]


@pytest_asyncio.fixture
async def make_link(standin: StandInModel) -> AsyncIterator[MakeLink]:
    """Make links to the stand-in's engine, closed when the test ends."""
    links = []

    def make(
        seen: list[EngineStatus] | None = None,
        *,
        tcp: bool = False,
        budgets: tuple[int, int | None] = (0, None),
        settings: EngineSettings | None = None,
    ) -> EngineLink:
        link = EngineLink(
            settings or EngineSettings(),
            str(standin.folder),
            on_status=(seen if seen is not None else []).append,
            tcp=tcp,
            budgets=budgets,
        )
        links.append(link)
        return link

    yield make
    for link in links:
        await link.close()


async def test_the_engine_starts_with_the_first_request_and_answers(
    make_link: MakeLink, standin: StandInModel
) -> None:
    standin.behave(loading_checks=3)
    seen: list[EngineStatus] = []
    link = make_link(seen)
    assert standin.pids() == []
    result = await link.complete(REQUEST)
    assert (result.text, result.finish_reason) == ("answer", "stop")
    assert (result.prompt_tokens, result.cached_tokens, result.completion_tokens) == (10, 4, 2)
    states = list(dict.fromkeys(status.state for status in seen))
    assert states == [EngineState.STARTING, EngineState.LOADING, EngineState.READY]
    progress = [(status.done, status.total) for status in seen if status.total]
    assert progress == sorted(progress)
    assert progress[0] == (2, 3)  # the first check found it up, under the lock


async def test_all_of_the_request_reaches_the_engine(
    make_link: MakeLink, standin: StandInModel
) -> None:
    await make_link().complete(
        CompletionRequest(
            prefix="π = \ud800<|fim_middle|>",
            suffix="\n",
            path="src/a.py",
            repo="circle",
            extra=(ContextFile("b.py", "import a\n"),),
            max_tokens=7,
            stop=("\n\n",),
        )
    )
    [event] = standin.events("infill")
    assert event["body"] == {
        "input_prefix": "π = ?<|fim_middle|>",  # half a surrogate pair cannot be sent
        "input_suffix": "\n",
        "input_extra": [{"filename": "b.py", "text": "import a\n"}],
        "filename": "src/a.py",
        "repo_name": "circle",
        "n_predict": 7,
        "stop": ["\n\n"],
        "temperature": 0.0,
        "stream": False,
        "priority": "completion",
    }


@pytest.mark.parametrize(
    ("budgets", "arguments"),
    [
        ((0, None), []),
        ((512, None), ["--cache-mib", "512"]),
        ((0, 0), ["--disk-cache-mib", "0"]),
        ((64, 4096), ["--cache-mib", "64", "--disk-cache-mib", "4096"]),
    ],
)
async def test_an_engine_is_started_with_the_budgets_that_are_set(
    make_link: MakeLink,
    standin: StandInModel,
    budgets: tuple[int, int | None],
    arguments: list[str],
) -> None:
    await make_link(budgets=budgets).ensure_ready()
    [event] = standin.events("started")
    given: list[str] = event["arguments"]
    assert given[given.index("--idle-minutes") + 2 :] == arguments


async def test_an_engine_is_started_on_the_device_that_is_set(
    make_link: MakeLink, standin: StandInModel
) -> None:
    await make_link(settings=EngineSettings(device="cuda:1")).ensure_ready()
    [event] = standin.events("started")
    assert event["arguments"][-2:] == ["--device", "cuda:1"]


async def test_windows_that_start_together_share_one_engine(
    make_link: MakeLink, standin: StandInModel
) -> None:
    links = [make_link() for _ in range(4)]
    answers = await asyncio.gather(*(link.complete(REQUEST) for link in links for _ in range(2)))
    assert [answer.text for answer in answers] == ["answer"] * 8
    assert len(standin.pids()) == 1


async def test_the_engine_stays_for_other_windows_when_one_closes(
    make_link: MakeLink, standin: StandInModel
) -> None:
    first = make_link()
    await first.complete(REQUEST)
    await first.close()
    assert first.status.state is EngineState.STOPPED
    with pytest.raises(EngineUnavailable):
        await first.complete(REQUEST)
    await make_link().complete(REQUEST)
    assert len(standin.pids()) == 1


async def test_the_engine_runs_apart_from_the_window_and_from_the_workspace(
    make_link: MakeLink,
    standin: StandInModel,
    runtime: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)  # a workspace whose torch.py must not be run
    await make_link().ensure_ready()
    [started] = standin.events("started")
    assert os.getsid(started["pid"]) == started["pid"]
    assert started["cwd"] == str(runtime / "qcn")
    assert str(tmp_path) not in started["path"]
    assert "" not in started["path"]
    assert stat.S_IMODE((runtime / "qcn").stat().st_mode) == 0o700
    log = runtime / "state" / "qcn" / f"engine-{engine_key(str(standin.folder))}.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


async def test_a_socket_left_behind_by_a_dead_engine_is_no_obstacle(
    make_link: MakeLink, standin: StandInModel, runtime: Path
) -> None:
    (runtime / "qcn").mkdir(mode=0o700)
    stale = runtime / "qcn" / f"engine-{engine_key(str(standin.folder))}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))
    assert stale.exists()
    assert (await make_link().complete(REQUEST)).text == "answer"


async def test_an_engine_killed_in_an_answer_fails_that_request_and_the_next_starts_another(
    make_link: MakeLink, standin: StandInModel
) -> None:
    standin.behave(infill="hang")
    seen: list[EngineStatus] = []
    link = make_link(seen)
    request = asyncio.create_task(link.complete(REQUEST))
    await until(lambda: bool(standin.events("infill")))
    os.kill(standin.pids()[0], signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match=r"broke off the connection.*ran out of memory"):
        await request
    assert link.status.state is EngineState.EXITED
    assert "ran out of memory" in link.status.message
    standin.behave()
    assert (await link.complete(REQUEST)).text == "answer"
    assert len(standin.pids()) == 2


async def test_an_engine_that_left_between_requests_is_started_again_unnoticed(
    make_link: MakeLink, standin: StandInModel, runtime: Path
) -> None:
    link = make_link()
    await link.complete(REQUEST)
    os.kill(standin.pids()[0], signal.SIGTERM)
    await until(lambda: not processes_of(runtime))
    assert (await link.complete(REQUEST)).text == "answer"
    assert len(standin.pids()) == 2


async def test_an_engine_that_ended_is_no_zombie_of_the_window_that_started_it(
    make_link: MakeLink, standin: StandInModel
) -> None:
    await make_link().ensure_ready()
    [pid] = standin.pids()
    os.kill(pid, signal.SIGTERM)
    await until(lambda: not psutil.pid_exists(pid))


async def test_an_engine_that_another_window_has_just_started_is_waited_for(
    make_link: MakeLink, standin: StandInModel
) -> None:
    standin.behave(infill="be late")
    assert (await make_link().complete(REQUEST)).text == "answer"
    assert len(standin.events("infill")) == 2
    assert len(standin.pids()) == 1


async def test_a_cancelled_request_drops_its_connection_and_nothing_else(
    make_link: MakeLink, standin: StandInModel
) -> None:
    standin.behave(infill="hang")
    link = make_link()
    request = asyncio.create_task(link.complete(REQUEST))
    await until(lambda: bool(standin.events("infill")))
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await until(lambda: bool(standin.events("disconnected")))
    assert link.status.state is EngineState.READY


async def test_cancelling_one_request_does_not_stop_the_start_others_wait_for(
    make_link: MakeLink, standin: StandInModel
) -> None:
    link = make_link()
    hasty = asyncio.create_task(link.complete(REQUEST))
    patient = asyncio.create_task(link.complete(REQUEST))
    await until(lambda: link.status.state is EngineState.STARTING)
    hasty.cancel()
    assert (await patient).text == "answer"
    assert hasty.cancelled()


async def test_closing_the_link_ends_the_requests_that_wait_with_a_sentence(
    make_link: MakeLink, standin: StandInModel
) -> None:
    standin.behave(loading_checks=1_000_000)
    link = make_link()
    request = asyncio.create_task(link.complete(REQUEST))
    await until(lambda: link.status.state is EngineState.LOADING)
    await link.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        await request


async def test_closing_the_link_ends_a_request_that_is_being_answered(
    make_link: MakeLink, standin: StandInModel
) -> None:
    standin.behave(infill="hang")
    link = make_link()
    request = asyncio.create_task(link.complete(REQUEST))
    await until(lambda: bool(standin.events("infill")))
    await link.close()
    with pytest.raises(EngineUnavailable):
        await request
    assert link.status.state is EngineState.STOPPED


async def test_a_superseded_request_says_so_and_keys_of_two_windows_differ(
    make_link: MakeLink, standin: StandInModel
) -> None:
    standin.behave(infill="supersede")
    request = CompletionRequest("a", "", "a.py", "r", supersede="file:///a.py")
    for link in (make_link(), make_link()):
        with pytest.raises(Superseded):
            await link.complete(request)
        assert link.status.state is EngineState.READY
    first, second = (event["body"]["supersede"] for event in standin.events("infill"))
    assert first != second
    assert first.endswith(":file:///a.py")


class TestVersions:
    async def test_an_older_idle_engine_is_replaced(
        self, make_link: MakeLink, standin: StandInModel
    ) -> None:
        standin.behave(version="0.0.9")
        await make_link().ensure_ready()
        standin.behave()
        await make_link().ensure_ready()
        assert [event["when"] for event in standin.events("shutdown")] == ["idle"]
        assert len(standin.pids()) == 2

    @pytest.mark.parametrize(
        ("version", "active"), [("0.0.9", 1), ("99.0", 0)], ids=["older and busy", "newer"]
    )
    async def test_one_that_must_stay_is_used_when_the_protocol_is_the_same(
        self, make_link: MakeLink, standin: StandInModel, version: str, active: int
    ) -> None:
        standin.behave(version=version, active_requests=active)
        await make_link().ensure_ready()
        assert (await make_link().complete(REQUEST)).text == "answer"
        assert len(standin.pids()) == 1

    @pytest.mark.parametrize(
        ("version", "remedy"), [("0.0.9", "It is busy"), ("99.0", "Update qcn-lsp")]
    )
    async def test_one_that_must_stay_and_speaks_another_protocol_is_named(
        self, make_link: MakeLink, standin: StandInModel, version: str, remedy: str
    ) -> None:
        standin.behave(version=version, active_requests=1, protocol=2)
        await make_link().ensure_ready()
        with pytest.raises(EngineUnavailable, match=rf"version {version}.*{remedy}"):
            await make_link().complete(REQUEST)


class TestFailures:
    async def test_an_engine_that_cannot_read_its_model_says_why_and_is_replaced_once_mended(
        self, make_link: MakeLink, standin: StandInModel
    ) -> None:
        standin.behave(state="errored", error="config.json is missing: choose another folder.")
        link = make_link()
        with pytest.raises(EngineUnavailable, match=r"config\.json is missing: choose another"):
            await link.complete(REQUEST)
        assert (link.status.state, link.status.message) == (
            EngineState.ERRORED,
            "config.json is missing: choose another folder.",
        )
        standin.behave()
        assert (await link.complete(REQUEST)).text == "answer"
        assert [event["when"] for event in standin.events("shutdown")] == ["now"]

    async def test_one_that_dies_while_starting_is_quoted(
        self, make_link: MakeLink, standin: StandInModel
    ) -> None:
        standin.behave(exit=4)
        link = make_link()
        with pytest.raises(EngineUnavailable, match=r"exit code 4(.|\n)*the stand-in gives up"):
            await link.complete(REQUEST)

    async def test_one_that_is_killed_while_starting_is_told_with_the_likeliest_cause(
        self, make_link: MakeLink, standin: StandInModel
    ) -> None:
        standin.behave(exit=-9)
        told = r"exit code -9 (.|\n)*ran out of memory.*qcn\.context\.memoryMiB(.|\n)*gives up"
        with pytest.raises(EngineUnavailable, match=told):
            await make_link().complete(REQUEST)

    async def test_one_that_is_killed_while_reading_its_model_is_told_likewise(
        self, make_link: MakeLink, standin: StandInModel
    ) -> None:
        standin.behave(loading_checks=1_000_000)
        seen: list[EngineStatus] = []
        ready = asyncio.create_task(make_link(seen).ensure_ready())
        await until(lambda: any(status.state is EngineState.LOADING for status in seen))
        os.kill(standin.pids()[0], signal.SIGKILL)
        with pytest.raises(EngineUnavailable, match=r"while reading its model\..*out of memory"):
            await ready

    async def test_one_that_dies_by_itself_is_not_told_as_killed(
        self, make_link: MakeLink, standin: StandInModel
    ) -> None:
        standin.behave(infill="die")
        with pytest.raises(EngineUnavailable, match="broke off the connection") as caught:
            await make_link().complete(REQUEST)
        assert "memory" not in str(caught.value)

    async def test_a_crash_loop_is_slowed_down_and_still_says_why(
        self, make_link: MakeLink, standin: StandInModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a clock that stands still: two seconds may go by before the third attempt."""
        stopped = partial(Failures, clock=lambda: 0.0)
        monkeypatch.setattr("qcn_lsp.engine.link.Failures", stopped)
        standin.behave(exit=4)
        link = make_link()
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                await link.complete(REQUEST)
        with pytest.raises(EngineUnavailable, match=r"exit code 4(.|\n)*next try in"):
            await link.complete(REQUEST)
        assert len(standin.pids()) == 2

    async def test_a_log_that_cannot_be_written_is_named(
        self, make_link: MakeLink, runtime: Path
    ) -> None:
        (runtime / "state").touch()  # where its directory should be
        with pytest.raises(EngineUnavailable, match=f"{runtime}/state/qcn, .*Set XDG_STATE_HOME"):
            await make_link().complete(REQUEST)

    async def test_a_log_that_is_there_and_cannot_be_written_is_named(
        self, make_link: MakeLink, standin: StandInModel, runtime: Path
    ) -> None:
        log = runtime / "state" / "qcn" / f"engine-{engine_key(str(standin.folder))}.log"
        log.mkdir(parents=True)
        with pytest.raises(EngineUnavailable, match=f"{log}, .*directory.*Set XDG_STATE_HOME"):
            await make_link().complete(REQUEST)
        assert standin.pids() == []

    async def test_without_the_engine_installed_the_message_names_both_remedies(
        self, make_link: MakeLink, standin: StandInModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("qcn_lsp.engine.process.ENGINE_PACKAGES", ("no_such_package",))
        remedies = r"pip install .*\[engine\].*qcn\.engine\.url.*--engine-url"
        with pytest.raises(EngineUnavailable, match=remedies):
            await make_link().complete(REQUEST)
        assert standin.pids() == []


def test_failures_in_a_row_wait_longer_and_longer_up_to_a_minute() -> None:
    now = 100.0
    failures = Failures(clock=lambda: now)
    waits = []
    for _ in range(9):
        failures.record()
        waits.append(failures.seconds_to_wait())
    assert waits == [0, 2, 4, 8, 16, 32, 60, 60, 60]
    now += 59
    assert failures.seconds_to_wait() == 1
    failures.clear()
    assert failures.seconds_to_wait() == 0


async def test_over_loopback_the_engine_is_shared_and_guarded_by_a_token(
    make_link: MakeLink, standin: StandInModel, runtime: Path
) -> None:
    links = [make_link(tcp=True) for _ in range(2)]
    await asyncio.gather(*(link.complete(REQUEST) for link in links))
    assert len(standin.pids()) == 1
    token_file = runtime / "qcn" / f"engine-{engine_key(str(standin.folder))}.token"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    first_token = token_file.read_text()
    await kill(standin.pids()[0])
    await links[0].complete(REQUEST)
    assert token_file.read_text() != first_token
