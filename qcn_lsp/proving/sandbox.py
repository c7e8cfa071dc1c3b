"""One sandbox: started, spoken with over pipes, ended with everything in it."""

import asyncio
import contextlib
import importlib.resources
import json
import os
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

from qcn_lsp.proving.outcomes import ProvingError
from qcn_lsp.proving.room import Room, Wall, python

LEAVE_SECONDS = 10.0
TAKE_SECONDS = 120.0  # for one file
MAX_HEADER = 16 << 20
MAX_COMPLAINT = 4096
MAX_GAP = 64  # what stands where output was left out


class Builder(Protocol):
    """A program that builds sandboxes."""

    name: str
    absent: str  # what to tell where it is not there

    async def version(self) -> str | None:
        """Return its version; None where it is not there, or does not answer."""
        ...

    def environment(self) -> dict[str, str]:
        """Return the environment of the command itself."""
        ...

    def command(self, room: Room, launcher: list[str], hand: Callable[[bytes], int]) -> list[str]:
        """Return the command that runs `launcher` in `room`.

        `hand` takes bytes and returns the descriptor that the command finds them at.
        """
        ...


@dataclass
class Sandbox:
    """Speaks with the launcher in a sandbox; one request at a time."""

    room: Room
    _process: asyncio.subprocess.Process
    _lock: asyncio.Lock

    async def tell(self, order: str, body: bytes = b"", **details: Any) -> None:
        """Send a request that has no answer."""
        header = json.dumps({"do": order, "size": len(body), **details}).encode()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack(">I", len(header)) + header + body)
            async with asyncio.timeout(TAKE_SECONDS):
                await self._process.stdin.drain()
        except OSError as error:
            raise ProvingError(await self._last_words()) from error

    async def ask(
        self, order: str, *, most: int, patience: float, **details: Any
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request and return its answer, with at most `most` bytes of body.

        Raises `ProvingError` when there is none within `patience` seconds; the sandbox is then of
        no use.
        """
        async with self._lock:
            await self.tell(order, **details)
            try:
                async with asyncio.timeout(patience):
                    return await self._answer(most)
            except (TimeoutError, asyncio.IncompleteReadError, ValueError, KeyError) as error:
                self._kill()
                raise ProvingError(await self._last_words()) from error

    async def run(
        self, argv: Sequence[str], environment: Mapping[str, str], seconds: float
    ) -> tuple[int, str | None, bytes]:
        """Run a command; return its exit code, which limit ended it, and its output, cut."""
        kept = self.room.limits.output_bytes
        inherited = {} if self.room.has(Wall.ENVIRONMENT) else dict(os.environ)
        answer, output = await self.ask(
            "run",
            most=kept + MAX_GAP,
            patience=seconds + LEAVE_SECONDS,
            seconds=seconds,
            argv=list(argv),
            environment=inherited | dict(environment),
            output_bytes=kept,
        )
        exit_code, ended_by = answer.get("exit_code"), answer.get("ended_by")
        if not isinstance(exit_code, int) or ended_by not in (None, "time", "memory"):
            raise ProvingError("The sandbox gave no answer that makes sense.")
        return exit_code, ended_by, output

    async def _answer(self, most: int) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        (length,) = struct.unpack(">I", await self._process.stdout.readexactly(4))
        if length > MAX_HEADER:
            raise ValueError(length)
        header = json.loads(await self._process.stdout.readexactly(length))
        size = header["size"]
        if not isinstance(size, int) or not 0 <= size <= most:
            raise ValueError(size)
        body = await self._process.stdout.readexactly(size)
        if problem := header.get("problem"):
            raise ProvingError(f"The sandbox could not take {problem}.")
        return header, body

    async def _last_words(self) -> str:
        assert self._process.stderr is not None
        said = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                said = await self._process.stderr.read(MAX_COMPLAINT)
        last = (said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        return f"The sandbox is gone: {last[:200]}."

    def _kill(self) -> None:
        """Kill the builder and what it has started: its first process takes all others along."""
        with contextlib.suppress(psutil.Error):
            builder = psutil.Process(self._process.pid)
            for process in [*builder.children(recursive=True), builder]:
                with contextlib.suppress(psutil.Error):
                    process.kill()

    async def _leave(self) -> None:
        """End the launcher, and wait until its last process is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # the launcher leaves, and takes all others along
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                with contextlib.suppress(OSError):  # it has closed its end before
                    await self._process.stdin.wait_closed()
                await _drained(self._process.stdout)
                await self._process.wait()
        except TimeoutError:
            self._kill()
            await self._process.wait()


async def _drained(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


@contextlib.asynccontextmanager
async def sandbox(builder: Builder, room: Room) -> AsyncIterator[Sandbox]:
    """Run a sandbox; at the end, however it comes, every process in it is gone."""
    handed: list[int] = []

    def hand(data: bytes) -> int:
        descriptor = os.memfd_create("qcn-proving", 0)
        handed.append(descriptor)
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    try:
        command = builder.command(room, launcher(room), hand)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=builder.environment() if room.has(Wall.ENVIRONMENT) else None,
            cwd="/",
            pass_fds=handed,
        )
    except OSError as error:
        raise ProvingError(f"{builder.name} cannot be started: {error.strerror}.") from error
    finally:
        for descriptor in handed:
            os.close(descriptor)
    running = Sandbox(room, process, asyncio.Lock())
    try:
        yield running
    finally:
        await asyncio.shield(running._leave())


def launcher(room: Room) -> list[str]:
    """Return the launcher's command, as it is run in the sandbox."""
    source = importlib.resources.files("qcn_lsp.proving").joinpath("inside.py").read_text("utf-8")
    return [str(python()), "-I", "-S", "-c", source, json.dumps(room.orders())]
