"""Time from starting the server's process to its `initialize` answer, and resident memory."""

import asyncio
import time
from typing import Any

from benchmarks import machine
from benchmarks.editor import (
    REPOSITORY,
    engine_process,
    open_file,
    own_engine,
    python_files,
    resident_memory,
    server_process,
)
from benchmarks.results import percentiles
from qcn_lsp.commands.session import EditorSession, editor_session

STARTS, QUICK_STARTS = 25, 3
OPEN_FILES = 20


def run(threads: int, *, quick: bool) -> dict[str, Any]:
    """Measure the server as installed, and its engine with the embedded model."""
    about = machine.describe(threads)
    with own_engine():
        starts = asyncio.run(_starts(QUICK_STARTS if quick else STARTS))
        memory = asyncio.run(_memory())
    times = {
        "initialize": percentiles([wall for wall, _ in starts], "ms"),
        "initialize_cpu": percentiles([cpu for _, cpu in starts], "CPU ms"),
    }
    return {"benchmark": "startup"} | about | times | memory


async def _starts(count: int) -> list[tuple[float, float]]:
    """Wall and CPU ms from before the process starts to the answer; the first is left out."""
    times = []
    for _ in range(count + 1):
        session = EditorSession(lambda status: None)
        began = time.perf_counter()
        await session.start(REPOSITORY)
        wall = time.perf_counter() - began
        cpu = server_process().cpu_times()
        times.append((1000 * wall, 1000 * (cpu.user + cpu.system)))
        await session.stop()
    return times[1:]


async def _memory() -> dict[str, Any]:
    files = python_files(OPEN_FILES)
    async with editor_session(REPOSITORY) as session:
        server = server_process()
        started = resident_memory(server)
        for path in files:
            open_file(session, path)
        # Its answer comes after the documents were read.
        await session.suggest(files[-1].as_uri(), 0, 0)
        return {
            "server_memory": _mib(started),
            "server_memory_with_20_files": _mib(resident_memory(server)),
            "engine_memory_with_qcn_nano": _mib(resident_memory(await engine_process())),
        }


def _mib(value: float) -> dict[str, Any]:
    return {"unit": "MiB", "value": round(value, 1)}
