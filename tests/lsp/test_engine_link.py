"""The server's hold on the engine: made when first used, replaced when its settings change."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from link_support import StandInModel, kill

from qcn_lsp.engine.link import (
    CompletionRequest,
    EngineState,
    EngineStatus,
    EngineUnavailable,
)
from qcn_lsp.server import QcnServer
from qcn_lsp.settings import Settings, parse_settings

REQUEST = CompletionRequest(prefix="def f(", suffix=")\n", path="a.py", repo="r")


class Recorder:
    """Takes the place of the wire."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None: ...


@pytest.fixture
async def server() -> AsyncIterator[QcnServer]:
    server = QcnServer()
    server.protocol.set_writer(Recorder())
    yield server
    await server.close()


def settings(**sections: object) -> Settings:
    parsed, problems = parse_settings(sections)
    assert problems == []
    return parsed


async def test_other_settings_leave_the_link_alone(server: QcnServer) -> None:
    link = server.engine
    server.apply_settings(settings(completion={"maxTokens": 5}, context={"tokens": 500}))
    assert server.engine is link


async def test_the_engine_is_started_with_the_budgets_of_the_settings(
    server: QcnServer, standin: StandInModel
) -> None:
    model = {"completion": str(standin.folder)}
    budgets = {"memoryMiB": 64, "diskMiB": 0}
    server.apply_settings(
        settings(
            models=model,
            context=budgets,
            engine={"deviceMemoryMiB": 20_000, "kvCacheDtype": "fp8"},
        )
    )
    await server.engine.ensure_ready()
    [event] = standin.events("started")
    told = ["--device-memory-mib", "20000", "--kv-cache-dtype", "fp8"]
    told += ["--cache-mib", "64", "--disk-cache-mib", "0"]
    assert event["arguments"][-8:] == told


async def test_roles_of_one_model_share_its_engine(server: QcnServer) -> None:
    assert server.engine_for("chat") is server.engine_for("completion") is server.engine
    server.apply_settings(settings(models={"completion": "one", "chat": "one"}))
    assert server.engine_for("chat") is server.engine


async def test_each_of_two_models_has_an_engine_which_starts_when_its_role_is_wanted(
    server: QcnServer, standin: StandInModel
) -> None:
    large = StandInModel(standin.folder.with_name("large"))
    models = {"completion": str(standin.folder), "chat": str(large.folder)}
    server.apply_settings(settings(models=models, context={"memoryMiB": 65}))
    assert (await server.engine.complete(REQUEST)).text == "answer"
    assert large.pids() == []
    await server.engine_for("chat").ensure_ready()
    for model, other in ((standin, large), (large, standin)):
        [event] = model.events("started")
        shared = ["--beside", str(other.folder), "--cache-mib", "32"]  # memory by halves
        assert event["arguments"][-4:] == shared

    [pid] = large.pids()
    await kill(pid)
    assert (await server.engine.complete(REQUEST)).text == "answer"
    assert len(standin.pids()) == 1
    assert (await server.engine_for("chat").complete(REQUEST)).text == "answer"
    assert len(large.pids()) == 2


async def test_the_status_tells_of_the_engine_that_matters_most(server: QcnServer) -> None:
    def changed(model: str, state: EngineState, message: str = "") -> tuple[str, str]:
        server.status.engine_changed(model, EngineStatus(state, message, model))
        return server.status.current.kind, server.status.current.message

    assert changed("small", EngineState.READY) == ("Normal", "")
    assert changed("large", EngineState.STARTING, "Starting") == ("Normal", "Starting")
    assert changed("small", EngineState.EXITED, "It left.") == ("Warning", "It left.")
    assert changed("large", EngineState.ERRORED, "No memory.") == ("Error", "No memory.")
    assert changed("small", EngineState.READY) == ("Error", "No memory.")
    assert changed("large", EngineState.READY) == ("Normal", "")


@pytest.mark.parametrize(
    "changed",
    [
        {"models": {"completion": "other"}},
        {"models": {"chat": "other"}},
        {"engine": {"url": "http://127.0.0.1:1"}},
        {"context": {"memoryMiB": 64}},
    ],
    ids=["model", "model for chat", "address", "budget"],
)
async def test_settings_of_the_engine_replace_the_link(
    server: QcnServer, changed: dict[str, object]
) -> None:
    link = server.engine
    server.apply_settings(settings(**changed))
    assert server.engine is not link
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
    with pytest.raises(EngineUnavailable):
        await link.ensure_ready()
    assert server.engine.status.state is EngineState.STOPPED
