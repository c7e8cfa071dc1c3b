"""What a figure depends on beside the code: hardware, versions, commit, threads, other work."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
FEATURES = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
)
PACKAGES = ("qcn-lsp", "torch", "transformers", "pygls")


def describe(threads: int) -> dict[str, Any]:
    """Everything that stands at the head of a result file."""
    return {
        "hardware": {
            "cpu": _cpu_model(),
            "features": [name for name in FEATURES if name in cpu_flags()],
            "physical_cores": psutil.cpu_count(logical=False),
            "logical_cores": psutil.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        # Result files themselves may differ: a run of all benchmarks writes them one by one.
        "uncommitted_changes": bool(
            _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        ),
        "threads": threads,
        "load_average_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def default_threads() -> int:
    """One thread per physical core."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def cpu_flags() -> set[str]:
    """What the processor can do, by the names that Linux has for it; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    return set()


class OtherWork:
    """How many cores the rest of the machine kept busy while something was measured."""

    def __init__(self) -> None:
        self.cores: list[float] = []
        self._began = (0.0, 0.0)

    def begin(self) -> None:
        """A measurement starts."""
        self._began = (time.perf_counter(), _busy_seconds())

    def end(self, own_cpu_seconds: float) -> None:
        """A measurement ended, in which what was measured used so much CPU time itself."""
        wall = time.perf_counter() - self._began[0]
        busy = _busy_seconds() - self._began[1]
        self.cores.append(max(0.0, (busy - own_cpu_seconds) / wall))


def read_bandwidth(num_bytes: int, threads: int) -> float:
    """Bytes per second when as many bytes are read again and again; the best of several tries.

    A buffer that fits in a cache is read at the cache's speed, as small weights are.
    """
    import torch

    torch.set_num_threads(threads)
    columns = 1024
    matrix = torch.ones(max(1, num_bytes // (4 * columns)), columns)
    vector = torch.ones(columns)
    read = matrix.numel() * 4
    return read / min(_best(lambda: torch.mv(matrix, vector)), _best(matrix.sum))


def product_rate(dtype: str, threads: int, size: int = 2048) -> float:
    """Operations per second of a square matrix product; the best of several tries.

    Of at most `size` rows: fewer where the processor has no instructions for `dtype`, on which
    torch takes a minute for 2,048.
    """
    import torch

    torch.set_num_threads(threads)
    rows = 256
    while True:
        a, b = (torch.randn(rows, rows).to(getattr(torch, dtype)) for _ in range(2))
        began = time.perf_counter()
        torch.mm(a, b)
        if rows >= size or time.perf_counter() - began > 0.1:
            return 2 * rows**3 / _best(partial(torch.mm, a, b))
        rows *= 2


def _best(call: Callable[[], object], seconds: float = 0.6) -> float:
    call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts guests' time in user time too.
    return float(
        sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
