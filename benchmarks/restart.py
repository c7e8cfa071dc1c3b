"""Restart to first completion: a context that an earlier engine has read, from disk or anew.

The real engine over its socket: its process is started, a layout sent with all its text, and one
token asked for behind it.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks import machine
from benchmarks.checkpoints import longer_nano
from benchmarks.editor import python_files
from benchmarks.results import figure
from qcn_lsp.engine.process import engine_environment

LENGTHS, QUICK_LENGTHS = (4_096, 16_384, 65_536), (4_096,)
ROUNDS, QUICK_ROUNDS = 5, 1
DEADLINE_SECONDS = 1_800.0
COMPLETION = {"input_prefix": "def main(", "input_suffix": "\n", "filename": "new.py"}


def run(threads: int, *, quick: bool) -> dict[str, Any]:
    """Measure all lengths."""
    about = machine.describe(threads)
    folder = longer_nano(2 * max(LENGTHS))
    rounds = QUICK_ROUNDS if quick else ROUNDS
    measured = [
        _measure(folder, threads, length, rounds)
        for length in (QUICK_LENGTHS if quick else LENGTHS)
    ]
    return {"benchmark": "restart"} | about | {"contexts": measured}


def _measure(folder: Path, threads: int, length: int, rounds: int) -> dict[str, Any]:
    print(f"restart: {length} tokens", file=sys.stderr)
    layout = _layout(folder, length)
    with tempfile.TemporaryDirectory(prefix="qcn-bench-") as directory:
        place = Path(directory)
        nothing = _first_completion(folder, threads, place, layout, "--disk-cache-mib", "0")
        _first_completion(folder, threads, place, layout)
        restarts = [_first_completion(folder, threads, place, layout) for _ in range(rounds)]
        disk = sum(path.stat().st_size for path in place.rglob("*.state"))
    return {
        "tokens": restarts[0]["tokens"],
        "start": figure([one["start"] for one in restarts], "ms"),
        "restored": figure([one["answer"] for one in restarts], "ms"),
        "read": figure([nothing["answer"]], "ms"),
        "tokens_computed": {
            "unit": "tokens",
            "value": max(one["computed"] for one in restarts),
        },
        "disk": {"unit": "MiB", "value": round(disk / 2**20, 1)},
    }


def _layout(folder: Path, length: int) -> list[dict[str, str]]:
    """Files of this repository of about `length` tokens together, as segments of a layout."""
    from qcn_inference.config import load_config
    from qcn_inference.contexts import Segment, segment_hash
    from qcn_inference.tokenizer import Tokenizer

    tokenizer = Tokenizer(folder, load_config(folder).vocab_size)
    segments, left, number = [], length, 0
    while left > 0:
        for file in python_files(200):
            path, text = f"{number}/{file.name}", file.read_text(encoding="utf-8")
            ids = Segment.of(tokenizer, path, text).ids
            if len(ids) > left:
                text = text[: len(text) * left // len(ids)]
            segments.append({"path": path, "text": text, "hash": segment_hash(path, text)})
            left -= len(ids)
            if left <= 0:
                break
        number += 1
    return segments


def _first_completion(
    folder: Path, threads: int, place: Path, layout: list[dict[str, str]], *arguments: str
) -> dict[str, float]:
    """Start an engine and complete behind a layout; milliseconds, and tokens computed."""
    began = time.perf_counter()
    with _engine(folder, threads, place, *arguments) as client:
        ready = time.perf_counter()
        body = {"repo": "benchmark", "segments": layout}
        put = client.put("/v1/contexts/benchmark", json=body).raise_for_status().json()
        asked = COMPLETION | {"context": "benchmark", "n_predict": 1}
        answer = client.post("/infill", json=asked).raise_for_status().json()
        answered = time.perf_counter()
    if answer["context_tokens"] != put["tokens"]:
        raise RuntimeError("the completion was answered without its context")
    return {
        "tokens": put["tokens"],
        "start": 1000 * (ready - began),
        "answer": 1000 * (answered - ready),
        "computed": put["computed"] + answer["timings"]["prompt_n"],
    }


@contextmanager
def _engine(
    folder: Path, threads: int, place: Path, *arguments: str
) -> Generator[httpx.Client, None, None]:
    """A client of an engine whose model is loaded; it leaves at the end, and has written all."""
    socket = place / "engine.sock"
    command = [sys.executable, "-m", "qcn_inference", "serve", "--model", str(folder)]
    command += ["--socket", str(socket), "--threads", str(threads), *arguments]
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        env={**engine_environment(), "XDG_CACHE_HOME": str(place / "cache")},
    )
    transport = httpx.HTTPTransport(uds=str(socket))
    try:
        with httpx.Client(
            transport=transport, base_url="http://engine", timeout=DEADLINE_SECONDS
        ) as client:
            _wait_until_ready(process, client)
            yield client
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", client: httpx.Client) -> None:
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"the engine has ended with code {process.returncode}")
        try:
            health = client.get("/health").json()
        except httpx.TransportError:
            health = {"state": "starting"}
        if health["state"] == "errored":
            raise RuntimeError(health["error"])
        if health["state"] == "ready":
            return
        time.sleep(0.005)
