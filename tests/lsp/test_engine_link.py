"""The server's hold on the engine: made when first used, replaced when its settings change."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from link_support import StandInModel

from qcn_lsp.engine.link import EngineState, EngineUnavailable
from qcn_lsp.server import QcnServer
from qcn_lsp.settings import Settings, parse_settings


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
    server.apply_settings(settings(models=model, context={"memoryMiB": 64, "diskMiB": 0}))
    await server.engine.ensure_ready()
    [event] = standin.events("started")
    assert event["arguments"][-4:] == ["--cache-mib", "64", "--disk-cache-mib", "0"]


@pytest.mark.parametrize(
    "changed",
    [
        {"models": {"completion": "other"}},
        {"engine": {"url": "http://127.0.0.1:1"}},
        {"context": {"memoryMiB": 64}},
    ],
    ids=["model", "address", "budget"],
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
