"""The server's hold on the engine: made when first used, replaced when its settings change."""

import asyncio
from collections.abc import AsyncIterator

import pytest

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
    server.apply_settings(settings(completion={"maxTokens": 5}))
    assert server.engine is link


@pytest.mark.parametrize(
    "changed",
    [{"models": {"completion": "other"}}, {"engine": {"url": "http://127.0.0.1:1"}}],
    ids=["model", "address"],
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
