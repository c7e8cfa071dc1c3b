"""Scale: a workspace of 10,000 files and one of 200,000, as the language server keeps them.

The workspaces are made for it, in a temporary folder: Python files of two kilobytes that import one
another, twenty to a folder, in one git repository without a commit. All that the server does with
one (`workers/scale.py`) runs in a process of its own, whose memory and CPU time are looked at; what
an engine would do, count tokens, is a division there.

The peer, in the same run: git, which walks the folder by the same rules (`ls-files --others`) and
reads and hashes every file (`hash-object`), as the first index must; and `git status` for what a
change costs one who keeps no index up to date by events.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.results import figure

FILES, QUICK_FILES = (10_000, 200_000), (1_000,)
BURST = 6_000  # files that a switch of branches writes
IN_A_FOLDER = 20
ROUNDS = 3
QUIET_SECONDS = 10.0


def run(threads: int, *, quick: bool) -> dict[str, Any]:
    """Measure every size."""
    about = machine.describe(threads)
    measured = [measure(files) for files in (QUICK_FILES if quick else FILES)]
    return {"benchmark": "scale"} | about | {"workspaces": measured}


def measure(files: int, quiet_seconds: float = QUIET_SECONDS) -> dict[str, Any]:
    """Make a workspace of so many files and measure it."""
    with tempfile.TemporaryDirectory(prefix="qcn-scale-") as folder:
        root = Path(folder) / "workspace"
        make_workspace(root, files)
        subprocess.run(["git", "init", "-q", root], check=True)
        git = [_git_first_index(root) for _ in range(ROUNDS)]
        status = [
            _timed(["git", "-C", root, "status", "--porcelain", "-uall"]) for _ in range(ROUNDS)
        ]
        ours = _worker(root, min(BURST, files // 2), quiet_seconds)
    first, one_change = ours["first_index"]["value"], ours["one_change"]["median"]
    return {
        "files": files,
        **ours,
        "git_first_index": figure(git, "s"),
        "git_status": figure(status, "s"),
        "first_index_over_git": round(first / figure(git, "s")["median"], 1),
        "git_status_over_one_change": round(1000 * figure(status, "s")["median"] / one_change, 1),
    }


def make_workspace(root: Path, files: int) -> None:
    """Write the files; the same ones for the same number."""
    draw = random.Random(files)
    for number in range(files):
        folder = root / f"area{number // 2_000:03}" / f"part{number // IN_A_FOLDER:05}"
        if number % IN_A_FOLDER == 0:
            folder.mkdir(parents=True)
        other = draw.randrange(files)
        (folder / f"module_{number}.py").write_text(_module(number, other))


def _module(number: int, other: int) -> str:
    functions = "".join(
        f"def function_{number}_{i}(value: int, scale: float = {i}.5) -> float:\n"
        f'    """Return the value number {i}, scaled."""\n'
        f"    return value * scale + function_{other}_0(value)\n\n\n"
        for i in range(12)
    )
    area, part = other // 2_000, other // IN_A_FOLDER
    module = f"area{area:03}.part{part:05}.module_{other}"
    return f"from {module} import function_{other}_0\n\n\n{functions}"


def _git_first_index(root: Path) -> float:
    """Seconds that git takes to list the files and to read and hash each."""
    began = time.perf_counter()
    listing = subprocess.run(
        ["git", "-C", root, "ls-files", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
    ).stdout
    subprocess.run(
        ["git", "-C", root, "hash-object", "--stdin-paths"],
        input=listing,
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=root,
    )
    return time.perf_counter() - began


def _timed(command: list[str | Path]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _worker(root: Path, burst: int, quiet_seconds: float) -> dict[str, Any]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.workers.scale"),
            *(str(root), str(burst), str(quiet_seconds)),
        ],
        cwd=machine.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result
