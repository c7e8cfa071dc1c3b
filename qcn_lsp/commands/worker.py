"""A process that works for a command, in a Python with torch, and prints how far it is."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from qcn_lsp.engine.process import engine_environment


@contextmanager
def worker(module: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a module of the engine's; its lines are read from the process's `stdout`.

    An interrupt ends it, and all that it started, without a word. It is in a group of its own,
    because a terminal would interrupt it too, and while it imports torch it could only answer with
    a traceback.
    """
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=engine_environment(),
        process_group=None if sys.platform == "win32" else 0,
    ) as process:
        try:
            yield process
        except KeyboardInterrupt:
            if sys.platform == "win32":
                process.terminate()
            else:
                os.killpg(process.pid, signal.SIGTERM)
            raise
