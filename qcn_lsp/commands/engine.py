"""`qcn engine start|stop|status`: the engines of this user, by hand."""

import asyncio
import ipaddress
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from qcn_lsp.commands.errors import CommandError
from qcn_lsp.engine.dialects import Health, engine_health
from qcn_lsp.engine.local import LocalEngine, dismiss
from qcn_lsp.engine.messages import EngineState, EngineStatus, EngineUnavailable, NoAnswer
from qcn_lsp.engine.process import (
    EngineOptions,
    engine_command,
    engine_environment,
    require_engine_packages,
)
from qcn_lsp.engine.runtime import (
    LOOPBACK,
    Address,
    LoopbackAddress,
    UnixAddress,
    engine_key,
    known_addresses,
    new_address,
    resolve_model,
    runtime_directory,
    write_token,
)
from qcn_lsp.settings import EngineSettings

HEALTH_SECONDS = 3.0
LEAVE_SECONDS = 30.0  # for one that has agreed to leave: a large model's memory takes a while
END_SECONDS = 3.0  # after a signal, until a stronger one
LOOK_AGAIN_SECONDS = 0.02


@dataclass(frozen=True)
class Where:
    """Where the user put an engine; all unset: where windows look for it."""

    socket: Path | None
    host: str | None
    port: int | None
    token_file: Path | None

    def address(self) -> Address | None:
        """Return the address meant, None for the usual one."""
        over_tcp = (self.host, self.port, self.token_file)
        if self.socket is not None:
            if over_tcp != (None, None, None):
                raise CommandError("--socket goes without --host, --port and --token-file")
            return UnixAddress(self.socket.absolute())
        if over_tcp == (None, None, None):
            return None
        if self.port is None or self.token_file is None:
            raise CommandError("--port and --token-file go together, and --host with both")
        host = _loopback(self.host or LOOPBACK)
        return LoopbackAddress(self.port, self.token_file.absolute(), host)


def _loopback(host: str) -> str:
    """Return the loopback address that `host` means: the token must not go anywhere else."""
    if host.lower() == "localhost":  # as the engine takes it; no resolver is asked
        return LOOPBACK
    with suppress(ValueError):
        address = ipaddress.ip_address(host.strip("[]"))
        if address.is_loopback:
            return str(address)
    raise CommandError(f"{host} is not loopback: an engine is at 127.0.0.1 or ::1, nowhere else")


def start(model: str, where: Where, *, beside: str | None, foreground: bool) -> int:
    """Start the engine of `model`, or find it running, and wait until it is ready.

    `beside` is another model, for whose engine the GPU keeps room.
    """
    address = where.address()
    if isinstance(address, LoopbackAddress) and not address.token_file.exists():
        write_token(address.token_file)
    options = EngineOptions(EngineSettings().idle_minutes, beside=beside)
    if foreground:
        return _run_here(resolve_model(model), address, options)
    asyncio.run(_attach(LocalEngine(model, options=options, address=address)))
    return 0


def stop(where: Where) -> int:
    """End the engines; one that does not answer is ended by its process id."""
    stopped, problems = asyncio.run(_stop_all(_addresses(where)))
    for line in stopped:
        print(line)
    if problems:
        raise CommandError("\n".join(problems))
    if not stopped:
        print("No engine is running.")
    return 0


def status(where: Where, *, as_json: bool) -> int:
    """Show the engines."""
    found = asyncio.run(running_engines(_addresses(where)))
    if as_json:
        listed = [
            {"address": str(address), "answers": health is not None}
            | (asdict(health) if health else {})
            for address, health in found
        ]
        print(json.dumps(listed))
    elif not found:
        print("No engine is running; it starts when it is first needed.")
    else:
        _print_table(found)
    return 0


async def running_engines(addresses: list[Address]) -> list[tuple[Address, Health | None]]:
    """Return the engines that listen; health is None for one that does not answer."""
    found: list[tuple[Address, Health | None]] = []
    for address in addresses:
        try:
            client = address.client()
        except EngineUnavailable:
            continue  # its token is gone, and with it the engine
        try:
            health = await engine_health(client, seconds=HEALTH_SECONDS)
            if health is not None:
                found.append((address, health))
        except NoAnswer:
            found.append((address, None))
        except EngineUnavailable:
            continue  # nobody there, or a stranger
        finally:
            await client.close()
    return found


def _addresses(where: Where) -> list[Address]:
    address = where.address()
    return [address] if address else known_addresses(runtime_directory())


def _run_here(model: str, address: Address | None, options: EngineOptions) -> int:
    """Become the engine: signals, exit code and output are then its own."""
    require_engine_packages()
    if address is None:
        key = engine_key(model)
        address = new_address(runtime_directory(), key, tcp=sys.platform == "win32")
    command = engine_command(model, address, options)
    print(f"Starting the engine on {address}", file=sys.stderr, flush=True)
    if sys.platform != "win32":
        os.execve(command[0], command, engine_environment())
    return subprocess.call(command, env=engine_environment())


async def _attach(local: LocalEngine) -> None:
    from rich.status import Status
    from rich.text import Text

    from qcn_lsp.commands.console import make_console

    console = make_console()
    shown = Status("Looking for the engine", console=console)

    def report(status: EngineStatus) -> None:
        share = f" {100 * status.done // status.total} %" if status.total else ""
        shown.update(Text(f"{status.message} {status.model or ''}{share}"))
        if not console.is_terminal and status.state is EngineState.STARTING:
            console.print(f"{status.message} {status.model or ''}", highlight=False)

    with shown:
        engine = await local.attach(report)
    try:
        health = await engine_health(engine.client)
    finally:
        await engine.close()
    if health is None:
        raise CommandError("the engine left again")
    console.print(f"The engine is ready: {health.model}, pid {health.pid}", highlight=False)


async def _stop_all(addresses: list[Address]) -> tuple[list[str], list[str]]:
    """End the engines at these addresses; return a line for each that ended and each that did not.

    One that cannot be ended keeps none of the others from being ended.
    """
    stopped, problems = [], []
    for address, health in await running_engines(addresses):
        try:
            stopped.append(await _stop_one(address, health))
        except EngineUnavailable as problem:
            problems.append(f"The engine at {address} cannot be stopped: {problem}")
    return stopped, problems


async def _stop_one(address: Address, health: Health | None) -> str:
    """End one engine and return a line that says so; raises `EngineUnavailable`."""
    try:
        if health is None:
            raise NoAnswer("it did not answer")
        client = address.client()
        try:
            await dismiss(client, when="now")
        finally:
            await client.close()
        if health.pid is not None:
            await asyncio.to_thread(_wait_for_engine, health.pid)
    except EngineUnavailable as problem:
        ended = await asyncio.to_thread(_end_process, address)
        if ended is None:
            raise
        return f"Ended the engine (pid {ended}): {str(problem).rstrip('.')}."
    return f"Stopped the engine (pid {health.pid})."


def _wait_for_engine(pid: int) -> None:
    """Wait until an engine that listens no more has given its memory back."""
    with suppress(psutil.NoSuchProcess):
        if not _ends(psutil.Process(pid), LEAVE_SECONDS):
            raise EngineUnavailable(
                f"it stopped listening and has not ended within {LEAVE_SECONDS:g} seconds"
            )


def _end_process(address: Address) -> int | None:
    """End the process whose command line says that it serves `address`; return its id.

    Raises `EngineUnavailable` when it outlives even that.
    """
    wanted = {"qcn_inference", *address.arguments()}
    for process in psutil.process_iter():
        try:
            if not wanted <= set(process.cmdline()):
                continue
            process.terminate()
            if not _ends(process, END_SECONDS):
                process.kill()
                if not _ends(process, END_SECONDS):
                    raise EngineUnavailable(f"its process {process.pid} does not end when killed")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        return process.pid
    return None


def _ends(process: psutil.Process, seconds: float) -> bool:
    """Return whether a process, which need not be a child of ours, ends within so many seconds.

    A zombie has ended: its memory is given back, only whoever started it has not asked yet.
    """
    end = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() >= end:
            return False
        time.sleep(LOOK_AGAIN_SECONDS)
    return True


def _print_table(found: list[tuple[Address, Health | None]]) -> None:
    from rich.table import Table

    from qcn_lsp.commands.console import make_console

    table = Table(box=None, pad_edge=False)
    for heading in ("MODEL", "STATE", "DEVICE", "VERSION", "PID", "ACTIVE", "IDLE", "ADDRESS"):
        table.add_column(heading, overflow="fold")
    for address, health in found:
        if health is None:
            table.add_row("?", "no answer", "", "", "", "", "", str(address))
            continue
        table.add_row(
            health.model or health.model_path or "?",
            health.state,
            health.device,
            health.version,
            str(health.pid),
            str(health.active_requests),
            f"{health.idle_seconds / 60:.0f} min",
            str(address),
        )
    console = make_console()
    console.print(table)
    for _, health in found:
        if health is None:
            continue
        if problem := health.error or health.device_problem:
            console.print(f"pid {health.pid}: {problem}", highlight=False, soft_wrap=True)
