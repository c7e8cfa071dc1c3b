"""Finding, sharing, starting and replacing the engine on this machine.

Guarantees. Windows that start at the same moment share one engine: all that looks for an engine,
dismisses one or starts one happens under a file lock, which the operating system gives back when
its holder dies. The lock is held until the new engine answers `/health` (a fraction of a second),
not until its model is read. An engine is never killed: it is asked to leave, and only when idle,
or when it cannot serve.

Versions. A newer server replaces an older engine when nobody uses it; until then, and towards an
engine newer than itself, it uses it if both speak the same protocol, and otherwise says so. Were
both to replace each other, two windows of different versions would do so in turn for ever.

Failure modes. The engine cannot read its model: it stays up, says why, and is replaced at the
next attempt. It dies while starting: its last words are in the message. It listens but does not
answer: nothing is started beside it, and the message names `qcn engine stop`.
"""

import asyncio
import logging
import re
import shlex
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout

from qcn_lsp.engine.client import HttpClient
from qcn_lsp.engine.dialects import PROTOCOL, Health, OwnEngine, engine_health
from qcn_lsp.engine.messages import (
    ConnectionLost,
    EngineState,
    EngineStatus,
    EngineUnavailable,
    NoAnswer,
    Unreachable,
)
from qcn_lsp.engine.process import (
    EngineOptions,
    EngineProcess,
    engine_command,
    killed_note,
    last_lines,
    log_path,
    require_engine_packages,
    spawn,
)
from qcn_lsp.engine.runtime import (
    Address,
    address_at,
    engine_key,
    new_address,
    resolve_model,
    runtime_directory,
    same_model,
)

logger = logging.getLogger(__name__)

Report = Callable[[EngineStatus], None]

ANSWER_SECONDS = 30.0  # from the start of the process until it answers /health: a cold disk
LEAVE_SECONDS = 10.0
LOADING_SECONDS = 60.0  # an engine deep in reading a file may keep its event loop waiting
LOCK_SECONDS = ANSWER_SECONDS + LEAVE_SECONDS + 5.0
END_SECONDS = 1.0  # from the end of an engine's connections until its exit code is known
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5


class LocalEngine:
    """The one engine of `model` that all of this user's windows share.

    `tcp` has it listen on a loopback port instead of a Unix socket; `address` puts it where the
    user wants it instead of where windows look for it.
    """

    def __init__(
        self,
        model: str,
        *,
        options: EngineOptions,
        tcp: bool = sys.platform == "win32",
        address: Address | None = None,
    ) -> None:
        self.model = resolve_model(model)
        self._options = options
        self._tcp = tcp
        self._address = address
        self._key = engine_key(str(address) if address else self.model)
        self._process: EngineProcess | None = None
        self._version = metadata.version("qcn-lsp")

    async def attach(self, report: Report) -> OwnEngine:
        """Return a client of the ready engine, started or replaced where that is needed.

        Raises `EngineUnavailable`. Cancelling it leaves a started engine running.
        """
        directory = runtime_directory()
        try:
            async with _locked(directory / f"engine-{self._key}.lock"):
                client = await self._find_usable(directory) or await self._start(directory, report)
        except OSError as error:  # a full disk, a directory that cannot be written
            raise EngineUnavailable(f"The engine could not be started: {error}.") from error
        try:
            health = await self._wait_until_loaded(client, report)
        except BaseException:
            await client.close()
            raise
        return OwnEngine(client, health.model, infills=health.infills)

    async def ending(self) -> str:
        """Return what is known of the engine's end, to be added to a message.

        That is whether it was killed, if this process started it, and how its log ends.
        """
        if (process := self._process) is not None:
            async for _ in _pauses(END_SECONDS):
                if (code := process.exit_code()) is not None:
                    return killed_note(code) + self._log_note()
        return self._log_note()

    async def _find_usable(self, directory: Path) -> HttpClient | None:
        """Return a client of an engine that is up and may be used; None when one must start."""
        address = self._address or address_at(directory, self._key, tcp=self._tcp)
        if address is None:
            return None
        client = address.client()
        try:
            health = await engine_health(client)
            if health is None:
                raise EngineUnavailable(
                    f"Something that is not our engine answers at {address}: end it, or name "
                    "another address."
                )
            if await self._keep(client, health):
                if self._process is not None and self._process.popen.pid != health.pid:
                    self._process = None  # another window's has taken the place of ours
                return client
        except (Unreachable, ConnectionLost):
            pass  # nobody there, or just leaving
        except NoAnswer as error:
            raise EngineUnavailable(f"{error} It may hang; end it with: qcn engine stop") from error
        except BaseException:
            await client.close()
            raise
        await client.close()
        return None

    async def _keep(self, client: HttpClient, health: Health) -> bool:
        """Return whether this engine may be used; otherwise it has left when this returns."""
        if health.state == "errored":
            logger.info("replacing the engine that could not read its model (pid %s)", health.pid)
            await dismiss(client, when="now")
            return False
        if self._address and not same_model(self.model, health.model_path):
            stop = shlex.join(["qcn", "engine", "stop", *self._address.arguments()])
            raise EngineUnavailable(
                f"The engine at {self._address} runs another model, {health.model_path}. "
                f"Choose another address, or end it with: {stop}"
            )
        if health.version == self._version:
            return True
        older = _numbers(health.version) < _numbers(self._version)
        if older and health.active_requests == 0:
            logger.info("replacing the engine of version %s by %s", health.version, self._version)
            await dismiss(client, when="idle")
            return False
        if health.protocol == PROTOCOL:
            logger.warning(
                "using the running engine of version %s with a server of version %s",
                health.version,
                self._version,
            )
            return True
        raise EngineUnavailable(
            f"The running engine is of version {health.version}, this server of {self._version}, "
            "and they do not understand each other. "
            + ("It is busy; it will be replaced when it is idle." if older else "Update qcn-lsp.")
        )

    async def _start(self, directory: Path, report: Report) -> HttpClient:
        """Start an engine and return a client of it once it answers; the caller holds the lock."""
        require_engine_packages()
        report(EngineStatus(EngineState.STARTING, "Starting the engine", self.model))
        try:
            return await self._start_once(directory)
        except EngineUnavailable as error:
            if not self._tcp or self._address is not None:
                raise
            # The port was free when it was chosen; somebody may have been quicker.
            logger.info("starting the engine on another port: %s", error)
            return await self._start_once(directory)

    async def _start_once(self, directory: Path) -> HttpClient:
        address = self._address or new_address(directory, self._key, tcp=self._tcp)
        command = engine_command(self.model, address, self._options)
        process = spawn(command, log=log_path(self._key), directory=directory)
        self._process = process
        logger.info("started the engine (pid %d), its log is %s", process.popen.pid, process.log)
        client = address.client()
        try:
            async for _ in _pauses(ANSWER_SECONDS):
                # Read before the question: one that left because another serves there already,
                # started by a window that was closed meanwhile, is then found answering.
                code = process.exit_code()
                with suppress(Unreachable, ConnectionLost, NoAnswer):
                    if await engine_health(client) is not None:
                        return client
                if code is not None:
                    raise EngineUnavailable(
                        f"The engine left with exit code {code} while starting."
                        + killed_note(code)
                        + self._log_note()
                    )
            raise EngineUnavailable(
                f"The engine did not answer within {ANSWER_SECONDS:g} seconds." + self._log_note()
            )
        except BaseException:
            await client.close()
            raise

    async def _wait_until_loaded(self, client: HttpClient, report: Report) -> Health:
        """Wait for the engine's model and return its health; reports the progress."""
        async for _ in _pauses(None):
            try:
                health = await engine_health(client, seconds=LOADING_SECONDS)
            except (Unreachable, ConnectionLost) as error:
                raise EngineUnavailable(
                    "The engine ended while reading its model." + await self.ending()
                ) from error
            if health is None or health.state == "errored":
                said = health.error if health else None
                raise EngineUnavailable(said or "The engine could not read its model.")
            if health.state == "ready":
                return health
            report(
                EngineStatus(
                    EngineState.LOADING,
                    "Loading the model",
                    health.model,
                    health.done,
                    health.total,
                )
            )
        raise AssertionError("unreachable: the pauses do not end")

    def _log_note(self) -> str:
        log = self._process.log if self._process else log_path(self._key)
        words = self._process.last_words() if self._process else last_lines(log)
        return f" Its log, {log}, ends:\n{words}" if words else ""


async def dismiss(client: HttpClient, *, when: str) -> None:
    """Ask an engine to leave ("idle" or "now") and wait until it has.

    Raises `EngineUnavailable` when it is still there after `LEAVE_SECONDS`.
    """
    try:
        await client.post("/shutdown", {"when": when}, accept=(200, 202))
        async for _ in _pauses(LEAVE_SECONDS):
            await engine_health(client, seconds=LEAVE_SECONDS)
    except (Unreachable, ConnectionLost):
        return
    raise EngineUnavailable(
        f"{client.name} was asked to leave and has not within {LEAVE_SECONDS:g} seconds."
    )


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Hold the lock file; asks again and again, so that a cancelled caller leaves no thread."""
    lock = FileLock(path, mode=0o600)
    async for _ in _pauses(LOCK_SECONDS):
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            continue
    else:
        raise EngineUnavailable(f"Another program holds {path} and starts no engine.")
    try:
        yield
    finally:
        lock.release()


async def _pauses(seconds: float | None) -> AsyncIterator[None]:
    """Yield at once and then after growing pauses, until `seconds` have gone by; None: for ever."""
    end = None if seconds is None else time.monotonic() + seconds
    pause = FIRST_PAUSE
    while end is None or time.monotonic() < end:
        yield
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, for telling the older from the newer."""
    return tuple(int(part) for part in re.findall(r"\d+", version))
