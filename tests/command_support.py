"""How the tests of the commands run `qcn`: as a process, as a user does."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from deadlines import DEADLINE_SECONDS

# A `sitecustomize` under which Python finds no torch, as where it is not installed.
WITHOUT_TORCH = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] == "torch" else find(name, path, target)
PathFinder.find_spec = find_spec
"""


def qcn(
    *arguments: str | Path, cwd: Path | None = None, by: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    """Run `qcn` to its end, by another program if one is given, and return what it printed."""
    return subprocess.run(
        [*by, sys.executable, "-m", "qcn_lsp.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_SECONDS,
    )


def obeying_modes() -> Sequence[str]:
    """What runs a program whom the modes of files keep out, also where the tests run as root."""
    if os.geteuid() != 0:
        return ()
    if (setpriv := shutil.which("setpriv")) is None:
        pytest.skip("no mode keeps root out, and there is no setpriv")
    return setpriv, "--bounding-set", "-dac_override,-dac_read_search"


def qcn_with_errors_on_a_terminal(*arguments: str | Path, cwd: Path) -> tuple[str, str]:
    """Run `qcn` with standard error on a terminal; return what it printed, and what came there."""
    terminal, inner = os.openpty()
    try:
        command = [sys.executable, "-m", "qcn_lsp.cli", *map(str, arguments)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=inner, cwd=cwd
        ) as process:
            os.close(inner)
            assert process.stdout is not None
            shown = b""
            with contextlib.suppress(OSError):  # the terminal's end, on Linux
                while more := os.read(terminal, 1 << 16):
                    shown += more
            printed = process.stdout.read()
    finally:
        os.close(terminal)
    return printed.decode(), shown.decode()
