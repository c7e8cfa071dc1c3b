"""A language server and an engine for a benchmark, apart from those the user has.

`qcn_lsp.commands.session` plays the editor. The engine runs in a runtime directory made for the
benchmark, so that an engine that is already there is neither measured nor disturbed.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from qcn_lsp.commands import engine
from qcn_lsp.commands.places import source_files
from qcn_lsp.commands.session import EditorSession, language_of
from qcn_lsp.engine.runtime import UnixAddress, known_addresses, runtime_directory

REPOSITORY = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def own_engine() -> Iterator[None]:
    """Servers started in the block share an engine made for it, which ends with it.

    It finds nothing on disk of what an earlier one has read.
    """
    # A short name: a socket's path is limited to some 100 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="qcn-bench-") as directory,
        mock.patch.dict(
            os.environ,
            {"XDG_RUNTIME_DIR": directory, "XDG_CACHE_HOME": f"{directory}/cache"},
        ),
    ):
        try:
            yield
        finally:
            with contextlib.redirect_stdout(sys.stderr):
                engine.stop(engine.Where(socket=None, host=None, port=None, token_file=None))


def server_process() -> psutil.Process:
    """The language server that this process runs."""
    (server,) = (child for child in psutil.Process().children() if "qcn_lsp" in child.cmdline())
    return server


async def engine_process() -> psutil.Process:
    """The engine that runs for the benchmark."""
    ((_, health),) = await engine.running_engines(known_addresses(runtime_directory()))
    if health is None:
        raise RuntimeError("the engine does not answer")
    return psutil.Process(health.pid)


async def engine_totals() -> dict[str, float]:
    """What the engine has counted since it started, by the names in its `/metrics`."""
    (address,) = known_addresses(runtime_directory())
    if not isinstance(address, UnixAddress):
        raise RuntimeError("this benchmark needs Unix sockets")
    transport = httpx.AsyncHTTPTransport(uds=str(address.socket))
    async with httpx.AsyncClient(transport=transport) as client:
        text = (await client.get("http://localhost/metrics")).raise_for_status().text
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


def resident_memory(process: psutil.Process) -> float:
    """Resident memory in MiB, shared pages included."""
    return float(process.memory_info().rss / 2**20)


def python_files(count: int) -> list[Path]:
    """The largest Python files of this repository."""
    files = [path for path in source_files(REPOSITORY) if path.suffix == ".py"]
    return sorted(files, key=lambda path: (-path.stat().st_size, path))[:count]


def open_file(session: EditorSession, path: Path) -> str:
    """Open a file as an editor does; return its text."""
    text = path.read_bytes().decode("utf-8")
    session.open(path.as_uri(), language_of(path), text)
    return text
