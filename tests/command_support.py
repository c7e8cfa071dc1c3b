"""How the tests of the commands run `qcn`: as a process, as a user does."""

import subprocess
import sys
from pathlib import Path

from deadlines import DEADLINE_SECONDS


def qcn(*arguments: str | Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run `qcn` to its end and return what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "qcn_lsp.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_SECONDS,
    )
