"""The scanning process as its owner sees it: started when first needed, replaced when it fails."""

import asyncio
import json
import logging
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress

from qcn_lsp.scan.finding import Finding
from qcn_lsp.scan.scanner import LONGEST
from qcn_lsp.scan.worker import read

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""After so long a text is given up. An ordinary one takes tens of milliseconds."""
_LONGEST_ANSWER = 1 << 26  # bytes


class ScanFailed(Exception):  # noqa: N818 - an outcome
    """A text could not be scanned; str() says why, in words for the user."""


class ScanProcess:
    """Scans texts one after another; not used by two event loops."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def scan(self, text: str, language: str) -> tuple[Finding, ...]:
        """Return the findings of a text; raises `ScanFailed`."""
        if len(text) > LONGEST:  # what the scanner would say, without a copy sent at each keystroke
            return ()
        question = json.dumps({"language": language, "text": text}).encode("ascii") + b"\n"
        async with self._turn:
            process = self._process
            if process is None or process.returncode is not None:  # killed while nobody asked it
                process = await self._start()
            try:
                async with asyncio.timeout(self._seconds):
                    answer = await _ask(process, question)
            except TimeoutError:
                self._end()
                raise ScanFailed(f"it took more than {self._seconds:g} s") from None
            except BaseException:  # cancelled halfway: its answer would be taken for the next one's
                self._end()
                raise
            if not answer.endswith(b"\n"):
                self._end()
                raise ScanFailed("the scanner broke off")
            return read(answer)

    async def close(self) -> None:
        """End the process."""
        process = self._process
        self._end()
        if process is not None:
            await process.wait()

    async def _start(self) -> Process:
        # -P, and a folder of Python's own: nothing is imported from the workspace.
        command = (sys.executable, "-P", "-m", "qcn_lsp.scan.worker")
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, cwd=sys.prefix, limit=_LONGEST_ANSWER
        )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()


async def _ask(process: Process, question: bytes) -> bytes:
    """Send one line and return the answer, which ends early where the process did."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(question)
        await process.stdin.drain()
    try:
        return await process.stdout.readline()
    except ValueError:  # longer than any answer should be
        return b""
