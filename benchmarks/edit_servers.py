"""The servers that are asked in `edit`, each over HTTP on this machine: our engine, llama.cpp's."""

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
from qcn_indexer.layout import Layout

from benchmarks.checkpoints import CACHE
from benchmarks.contenders import WorkerError
from benchmarks.editor import own_engine
from benchmarks.edits import Tail
from benchmarks.peers import LLAMA_SERVER, check_server, gguf
from qcn_lsp.engine.local import LocalEngine
from qcn_lsp.engine.process import EngineOptions
from qcn_lsp.engine.runtime import UnixAddress, known_addresses, runtime_directory

CONTEXT, REPOSITORY_NAME = "benchmark", "repository"
LONGEST_ANSWER = 900.0  # seconds
START_SECONDS = 120.0
# Its defaults where they are the best: checkpoints and the cache of prompts on. One slot, because
# only it is asked; what it keeps in memory of other prompts is up to 8 GiB.
LLAMA_OPTIONS = ["--parallel", "1", "--ctx-checkpoints", "32", "--cache-ram", "8192", "--no-ui"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What one answer took, in seconds, and how many tokens were computed of how many."""

    seconds: float
    computed: int
    prompt: int


class Ours:
    """Our engine, given layouts as the language server gives them."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._sent: set[str] = set()

    def ask(self, layout: Layout, tail: Tail) -> Asked:
        """Have a layout read, and the first token behind it."""
        began = time.perf_counter()
        refreshed = self.read(layout)
        body = {
            "input_prefix": tail.prefix,
            "input_suffix": tail.suffix,
            "filename": str(tail.path),
            "repo_name": REPOSITORY_NAME,
            "context": CONTEXT,
            "n_predict": 1,
        }
        answer = _json(self._http.post("/infill", json=body))
        seconds = time.perf_counter() - began
        if answer["context_tokens"] != refreshed["tokens"]:
            raise RuntimeError("the engine has completed without the context")
        computed = refreshed["computed"] + answer["timings"]["prompt_n"]
        return Asked(seconds, computed, answer["tokens_evaluated"])

    def read(self, layout: Layout) -> dict[str, Any]:
        """Have a layout read; only texts that were not sent before are sent."""
        hashes = {segment.hash for segment in layout.segments}
        segments = [
            {"hash": one.hash, "path": str(one.path), "zone": one.zone, "hot": one.hot}
            | ({} if one.hash in self._sent else {"text": one.text})
            for one in layout.segments
        ]
        body = {"repo": REPOSITORY_NAME, "wait": True, "segments": segments}
        answer = _json(self._http.put(f"/v1/contexts/{CONTEXT}", json=body))
        self._sent = hashes
        return answer

    def forget(self) -> None:
        """Have it forget all that it has read."""
        self._http.delete(f"/v1/contexts/{CONTEXT}")
        self._sent = set()


@contextlib.contextmanager
def our_engine(folder: Path, threads: int) -> Iterator[Ours]:
    """The engine as the language server starts it, with so many threads."""
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": str(threads)}), own_engine():
        asyncio.run(_started(folder))
        (address,) = known_addresses(runtime_directory())
        if not isinstance(address, UnixAddress):
            raise RuntimeError("this benchmark needs Unix sockets")
        transport = httpx.HTTPTransport(uds=str(address.socket))
        with httpx.Client(
            transport=transport, base_url="http://localhost", timeout=LONGEST_ANSWER
        ) as http:
            yield Ours(http)


async def _started(folder: Path) -> None:
    engine = await LocalEngine(str(folder), options=EngineOptions(60)).attach(lambda status: None)
    await engine.close()


class Llama:
    """llama.cpp's server, given token ids."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ask(self, ids: Sequence[int], *, tokens: int = 1, from_nothing: bool = False) -> Asked:
        """Have a prompt read and so many tokens generated."""
        body = {
            "prompt": list(ids),
            "n_predict": tokens,
            "temperature": 0,
            "cache_prompt": not from_nothing,
        }
        began = time.perf_counter()
        answer = _json(self._http.post("/completion", json=body))
        seconds = time.perf_counter() - began
        return Asked(seconds, answer["timings"]["prompt_n"], answer["tokens_evaluated"])


@contextlib.contextmanager
def llama_server(folder: Path, threads: int, context: int) -> Iterator[Llama]:
    """llama.cpp's server for prompts of up to `context` tokens.

    Raises:
        PeerError, WorkerError: it is not set up, or does not start.
    """
    check_server()
    model, port = gguf(folder, "bf16"), _free_port()
    command = [str(LLAMA_SERVER), "--model", str(model), "--ctx-size", str(context)]
    command += ["--threads", str(threads), "--host", "127.0.0.1", "--port", str(port)]
    log = CACHE / "llama-server.log"
    with log.open("w") as output:
        process = subprocess.Popen([*command, *LLAMA_OPTIONS], stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=LONGEST_ANSWER, trust_env=False) as http:
            _wait_until_up(http, process, log)
            yield Llama(http)
    finally:
        process.kill()
        process.wait()


def _wait_until_up(http: httpx.Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if http.get("/health").status_code == 200:
                return
        time.sleep(0.1)
    words = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise WorkerError(f"llama.cpp's server did not start: {' '.join(words)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _json(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_error:
        raise RuntimeError(f"{answer.request.url.path}: {answer.status_code} {answer.text[:300]}")
    body: dict[str, Any] = answer.json()
    return body
