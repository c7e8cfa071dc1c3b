"""`python -m benchmarks.workers.scale ROOT BURST SECONDS`: one workspace, kept as the server does.

Prints JSON. Changes `BURST` of the folder's files, and does nothing for `SECONDS` to see what that
costs.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from qcn_indexer.changes import Changes
from qcn_indexer.observe import Watcher

from benchmarks.results import figure
from qcn_lsp.context.repository import Repository

BUDGET = 262_144  # tokens: the longest context
CHANGES = 20


def main() -> None:
    root, burst, quiet = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    process = psutil.Process()
    before = _resident()
    repository = Repository(root, count=lambda text: len(text) // 4, budget=BUDGET)
    indexed, laid_out = _first_reading(repository)
    changes = Changes(root)
    watching = time.perf_counter()
    watcher = Watcher(root, changes, lambda message: None)
    watching = time.perf_counter() - watching
    try:
        cpu = _cpu(process)
        time.sleep(quiet)
        idle = _cpu(process) - cpu
        kept = _resident()
        one = [_one_change(repository, root, changes, number) for number in range(CHANGES)]
        many = _burst(repository, root, changes, burst)
    finally:
        watcher.stop()
    result: dict[str, Any] = {
        "first_index": {"unit": "s", "value": round(indexed, 2)},
        "layout": {"unit": "s", "value": round(laid_out - indexed, 2)},
        "segments": len(repository.layout.segments),
        "watching": {"unit": "s", "value": round(watching, 2)},
        "one_change": figure(one, "ms"),
        "burst_files": burst,
        **many,
        "idle_cpu": {"unit": f"CPU s in {quiet:g} s", "value": round(idle, 3)},
        "memory_before": {"unit": "MiB", "value": round(before, 1)},
        "memory": {"unit": "MiB", "value": round(kept, 1)},
        "memory_after_burst": {"unit": "MiB", "value": round(_resident(), 1)},
    }
    print(json.dumps(result))


def _first_reading(repository: Repository) -> tuple[float, float]:
    """Seconds until every file is known, and until a layout is chosen."""
    began = indexed = time.perf_counter()

    def report(stage: str) -> None:
        nonlocal indexed
        if stage.endswith("found"):
            indexed = time.perf_counter()

    repository.read({}, report)
    return indexed - began, time.perf_counter() - began


def _one_change(repository: Repository, root: Path, changes: Changes, number: int) -> float:
    """Milliseconds to take in one file that was saved, once its event is there."""
    path = next(iter(repository.layout.segments)).path
    _change(root / path, number)
    _until_told(changes)
    return 1000 * _seconds(lambda: repository.take_in(repository.look(changes.take())))


def _burst(repository: Repository, root: Path, changes: Changes, burst: int) -> dict[str, Any]:
    """A switch of branches: how long until the files are known, and until they are laid out."""
    names = sorted(str(path) for path in root.rglob("*.py"))[:burst]
    for name in names:
        _change(Path(name), CHANGES)
    _until_told(changes)
    known = _seconds(lambda: repository.take_in(repository.look(changes.take())))
    anew = _seconds(lambda: repository.swap(repository.compacted({}), repository.layout))
    return {
        "burst_known": {"unit": "s", "value": round(known, 2)},
        "burst_laid_out": {"unit": "s", "value": round(anew, 2)},
    }


def _change(file: Path, number: int) -> None:
    file.write_text(file.read_text() + f"CHANGED = {number}\n")


def _until_told(changes: Changes) -> None:
    while (pause := changes.delay(time.monotonic())) != 0:
        time.sleep(0.01 if pause is None else pause)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _resident() -> float:
    return float(psutil.Process().memory_info().rss / 2**20)


if __name__ == "__main__":
    main()
