"""The link with the real engine and the embedded model."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from deadlines import DEADLINE_SECONDS
from link_support import until

from qcn_lsp.engine.dialects import engine_health
from qcn_lsp.engine.link import (
    CompletionRequest,
    EngineLink,
    EngineState,
    EngineStatus,
    EngineUnavailable,
    Superseded,
)
from qcn_lsp.engine.runtime import address_at, engine_key, runtime_directory
from qcn_lsp.settings import EngineSettings

REQUEST = CompletionRequest(
    prefix="def add(a: int, b: int) -> int:\n    return ",
    suffix="\n",
    path="a.py",
    repo="r",
    max_tokens=4,
)


class Recorded:
    """A link and the states it went through."""

    def __init__(self, model: str) -> None:
        self.seen: list[EngineStatus] = []
        self.link = EngineLink(EngineSettings(), model, on_status=self.seen.append)

    @property
    def states(self) -> list[EngineState]:
        return list(dict.fromkeys(status.state for status in self.seen))


@pytest_asyncio.fixture
async def nano(runtime: Path) -> AsyncIterator[Recorded]:
    recorded = Recorded("qcn-nano")
    yield recorded
    await recorded.link.close()


async def active_requests() -> tuple[int, int]:
    """Return how many requests the embedded model's engine works on, and its process id."""
    address = address_at(runtime_directory(), engine_key("qcn-nano"), tcp=False)
    assert address is not None
    client = address.client()
    health = await engine_health(client)
    await client.close()
    assert health is not None
    assert health.pid is not None
    return health.active_requests, health.pid


async def working() -> int:
    """Return the engine's process id as soon as it works on a request."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            active, pid = await active_requests()
            if active:
                return pid


async def test_it_starts_loads_answers_supersedes_dies_and_starts_again(nano: Recorded) -> None:
    link = nano.link
    first = await link.complete(REQUEST)
    assert nano.states == [EngineState.STARTING, EngineState.LOADING, EngineState.READY]
    assert link.status.model == "qcn-nano"
    assert first.prompt_tokens > 10
    again = await link.complete(REQUEST)
    assert (again.text, again.prompt_tokens) == (first.text, first.prompt_tokens)

    long = CompletionRequest("x = 1\n" * 700, "", "a.py", "r", max_tokens=512, supersede="a.py")
    older = asyncio.create_task(link.complete(long))
    await working()
    other = replace(long, prefix="y = 2\n" * 700)
    newer = asyncio.create_task(link.complete(other))
    with pytest.raises(Superseded):
        await older

    pid = await working()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match="broke off the connection"):
        await newer
    assert link.status.state is EngineState.EXITED
    assert (await link.complete(REQUEST)).text == first.text


async def test_a_folder_it_cannot_read_is_named_with_the_remedy_and_mended_settings_help(
    runtime: Path, nano: Recorded, tmp_path: Path
) -> None:
    broken = Recorded(str(tmp_path))
    with pytest.raises(EngineUnavailable, match=rf"{tmp_path}.*config\.json"):
        await broken.link.complete(REQUEST)
    assert broken.states[-1] is EngineState.ERRORED
    await broken.link.close()
    await nano.link.complete(REQUEST)  # what the server does when the setting changes


async def test_a_cancelled_request_stops_the_work(nano: Recorded) -> None:
    long = CompletionRequest("x = 1\n" * 400, "", "a.py", "r", max_tokens=2000)
    request = asyncio.create_task(nano.link.complete(long))
    await nano.link.ensure_ready()
    await working()
    request.cancel()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (await active_requests())[0]:
            pass
    await until(request.cancelled)
