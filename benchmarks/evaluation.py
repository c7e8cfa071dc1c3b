"""Does the repository help qcn-nano? `qcn eval --overlay` on this repository, as a user runs it."""

import json
import subprocess
import sys
from typing import Any

from benchmarks import machine
from benchmarks.editor import REPOSITORY, own_engine

LIMIT, QUICK_LIMIT = 30, 2  # lines for each part


def run(threads: int, *, quick: bool) -> dict[str, Any]:
    """Ask the embedded model; the engine chooses its threads itself."""
    about = machine.describe(threads)
    limit = str(QUICK_LIMIT if quick else LIMIT)
    command = [sys.executable, "-m", "qcn_lsp.cli", "eval", "--overlay", "--json"]
    with own_engine():
        done = subprocess.run(
            [*command, "--limit", limit, str(REPOSITORY)], check=True, stdout=subprocess.PIPE
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return {"benchmark": "evaluation"} | about | result
