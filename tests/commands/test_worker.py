"""Commands whose work is done by a process with torch: an interrupt, as a terminal sends it."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from link_support import processes_of, until

from benchmarks.checkpoints import NANO

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no process groups there")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("models", "convert", str(NANO), "copy", "--experts", "int4"),
            "qcn: interrupted. The same command goes on where it stopped.\n",
        ),
        (("bench",), ""),
    ],
    ids=["convert", "bench"],
)
async def test_an_interrupt_ends_the_work_without_a_traceback(
    arguments: tuple[str, ...], told: str, runtime: Path, tmp_path: Path
) -> None:
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "qcn_lsp.cli", *arguments),
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    await until(lambda: _imports_torch(command.pid))
    os.killpg(command.pid, signal.SIGINT)
    _, printed = await command.communicate()
    errors = printed.decode()
    assert command.returncode == 130
    assert [line for line in errors.splitlines() if line.startswith("qcn:")] == told.splitlines()
    assert "Traceback" not in errors
    await until(lambda: not processes_of(runtime))


def _imports_torch(pid: int) -> bool:
    """Whether a process of the command has begun to import torch, which takes seconds."""
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children():
            return any("torch" in mapped.path for mapped in child.memory_maps())
    return False
