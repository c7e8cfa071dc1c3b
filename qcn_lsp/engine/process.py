"""The engine's process: started apart from this one, its log kept, its last words found.

The engine outlives the window that started it, because other windows use it too: it is a session
leader of its own, its input is closed and its output goes to a file. It leaves by itself when
nobody has used it for a while.

A thread waits for its end, so that it is no zombie of the window that started it: whoever waits
for the engine's end (`qcn engine stop`) would wait for as long as that window is open.

It runs in safe-path mode (`-P`) and in its runtime directory: a workspace that holds a file named
`torch.py` must not be able to run it.
"""

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qcn_lsp.engine.messages import EngineUnavailable
from qcn_lsp.engine.runtime import Address
from qcn_lsp.installation import install_command

MAX_LOG_BYTES = 1 << 20
LAST_LINES = 8
KILLED = (-9, 128 + 9)  # SIGKILL, as Python and as a shell tells it
ENGINE_PACKAGES = ("torch", "safetensors", "tokenizers", "starlette", "uvicorn")


@dataclass
class EngineProcess:
    """An engine this process started, and where its own part of the log begins."""

    popen: "subprocess.Popen[bytes]"
    log: Path
    log_start: int

    def exit_code(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self.popen.poll()

    def last_words(self) -> str:
        """Return the end of what this engine wrote to its log."""
        return last_lines(self.log, self.log_start)


def killed_note(code: int | None) -> str:
    """Say why the system may have killed an engine; nothing where it ended in another way."""
    if code not in KILLED:
        return ""
    return (
        " It was killed (SIGKILL), most likely because the machine ran out of memory: end other "
        "programs, choose a smaller model, or lower `qcn.context.memoryMiB`."
    )


def missing_packages() -> list[str]:
    """Return the packages the engine needs and this Python lacks, without importing any."""
    return [name for name in ENGINE_PACKAGES if importlib.util.find_spec(name) is None]


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is started with, and keeps.

    Budgets for what it has read, in MiB: 0 of memory, or None of disk, leaves the choice to it. So
    does 0 MiB of a GPU's memory, which is for everything.
    """

    idle_minutes: float
    memory_mib: int = 0
    disk_mib: int | None = None
    device: str = "auto"
    device_memory_mib: int = 0
    kv_cache_dtype: str = "auto"  # of a GPU
    beside: str | None = None  # another model, whose engine needs room on the GPU as well

    def arguments(self) -> list[str]:
        """Return them as the engine's command line takes them."""
        arguments = ["--idle-minutes", f"{self.idle_minutes:g}"]
        if self.device != "auto":
            arguments += ["--device", self.device]
        if self.device_memory_mib:
            arguments += ["--device-memory-mib", str(self.device_memory_mib)]
        elif self.beside is not None and self.device != "cpu":
            arguments += ["--beside", self.beside]
        if self.kv_cache_dtype != "auto":
            arguments += ["--kv-cache-dtype", self.kv_cache_dtype]
        if self.memory_mib:
            arguments += ["--cache-mib", str(self.memory_mib)]
        if self.disk_mib is not None:
            arguments += ["--disk-cache-mib", str(self.disk_mib)]
        return arguments


def engine_command(model: str, address: Address, options: EngineOptions) -> list[str]:
    """Return the command line that runs the engine under this interpreter."""
    serve = [sys.executable, "-P", "-m", "qcn_inference", "serve", "--model", model]
    return [*serve, *address.arguments(), *options.arguments()]


def purge_command(repo: str) -> list[str]:
    """Return the command line that removes from disk what engines have read of a repository."""
    return [sys.executable, "-P", "-m", "qcn_inference", "purge", "--repo", repo]


def engine_environment() -> dict[str, str]:
    """Return the environment the engine runs in: this one, with threads that soon wait asleep.

    The engine shares the machine with an editor, its linters and builds. OpenMP's threads spin
    while they wait for each other. On two cores, qcn-nano, a completion of 280 new tokens behind
    4,000: 90 ms on quiet cores, but 500 to 4,000 beside four busy processes; asleep at once, 170
    and 200 ms; spinning so often first (GNU's OpenMP alone can be told), 110 and 190. What the
    user sets stands.
    """
    return {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2500", **os.environ}


def require_engine_packages() -> None:
    """Raise `EngineUnavailable` with the remedy when the engine is not installed."""
    if missing := missing_packages():
        raise EngineUnavailable(
            f"The local engine is not installed ({', '.join(missing)} missing from "
            f"{sys.executable}). Install it with: {install_command('engine')}; or point the "
            "setting `qcn.engine.url` (of commands: --engine-url) at an OpenAI-compatible server."
        )


def spawn(command: Sequence[str], *, log: Path, directory: Path) -> EngineProcess:
    """Start the engine, detached; raises `OSError` when the system refuses.

    Raises `EngineUnavailable` with the remedy where its log cannot be written.
    """
    try:
        descriptor, log_start = _open_log(log)
    except OSError as error:
        raise _no_log(f"The engine's log, {log}, cannot be written", error) from error
    try:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd=directory,
            env=engine_environment(),
            start_new_session=True,
            creationflags=_WINDOWS_DETACHED,
        )
    finally:
        os.close(descriptor)
    threading.Thread(target=popen.wait, name="engine's end", daemon=True).start()
    return EngineProcess(popen, log, log_start)


def log_path(key: str) -> Path:
    """Return the log of the engine of this key, in the user's state directory (0700).

    Raises `EngineUnavailable` with the remedy where that directory cannot be made.
    """
    import platformdirs

    directory = platformdirs.user_state_path("qcn", appauthor=False)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _no_log(
            f"The folder of the engine's log, {directory}, cannot be made", error
        ) from error
    return directory / f"engine-{key}.log"


def _no_log(what: str, error: OSError) -> EngineUnavailable:
    remedy = "Set XDG_STATE_HOME to a folder that you can write to."
    return EngineUnavailable(f"{what} ({error.strerror}). {remedy}")


def last_lines(log: Path, start: int = 0) -> str:
    """Return the last lines of `log` from byte `start` on; nothing when it cannot be read."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(min(start, end), end - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    written = [line for line in text.splitlines() if line.strip()]
    return "\n".join(written[-LAST_LINES:])


# DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP, named only in Windows' standard library.
_WINDOWS_DETACHED = 0x0000_0008 | 0x0000_0200 if sys.platform == "win32" else 0


def _open_log(log: Path) -> tuple[int, int]:
    """Open `log` for appending, the previous one moved aside when large; return (fd, size)."""
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return descriptor, os.fstat(descriptor).st_size
