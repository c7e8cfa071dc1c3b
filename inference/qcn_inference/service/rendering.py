"""The process that renders the checkpoint's chat template: started when first needed, and kept.

A template that takes too long or too much ends its process (`template_worker.py`), never this one;
the next request starts another. The process ends with its standard input, so also when the engine
is killed.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qcn_inference.chat_template import ChatTemplate
from qcn_inference.service.errors import ApiError

WORKER = Path(__file__).parents[1] / "template_worker.py"
CPU_SECONDS = 3
MEMORY_BYTES = 1 << 30
PATIENCE_SECONDS = 30.0
"""How long to wait for an answer on a busy machine; the limit proper is of CPU time."""
ENVIRONMENT = ("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "SYSTEMROOT", "TZ")
"""What the process inherits: by which Python finds itself and Jinja, and the time of day."""


class Renderer:
    """Renders one template, one request after the other. Belongs to the event loop's thread."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def render(self, request: Mapping[str, Any]) -> str:
        """What the template makes of a request.

        Raises:
            ApiError: the template refuses the messages (400), or fails or takes too much (500).
        """
        async with self._turn:
            try:
                answer = await self._asked(request)
            except BaseException:
                await self.close()  # its answer would be taken for the next one's
                raise
        if "refused" in answer:
            message = f"the model's chat template refuses this: {answer['refused']}"
            raise ApiError(400, "invalid_request_error", message)
        if "error" in answer:
            raise self._failed(answer["error"])
        text: str = answer["text"]
        return text

    async def _asked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.returncode is not None:
            self._process = await self._started()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                process.stdin.write(_framed(request))
                await process.stdin.drain()
                length = int.from_bytes(await process.stdout.readexactly(4), "big")
                answer: dict[str, Any] = json.loads(await process.stdout.readexactly(length))
        except TimeoutError:
            raise self._failed(f"it gave no answer in {PATIENCE_SECONDS:g} s") from None
        except (asyncio.IncompleteReadError, OSError):
            status = await process.wait()
            raise self._failed(_ended_by(status)) from None
        return answer

    async def _started(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the folder of the file is no place to import from
            str(WORKER),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        )
        assert process.stdin is not None
        limits = {"cpu_seconds": CPU_SECONDS, "memory_bytes": MEMORY_BYTES}
        process.stdin.write(_framed({"template": self.template.text, **limits}))
        return process

    def _failed(self, reason: str) -> ApiError:
        remedy = "use the template that belongs to the checkpoint"
        message = f"the chat template {self.template.path} failed: {reason}; {remedy}"
        return ApiError(500, "chat_template_failed", message)

    async def close(self) -> None:
        """End the process; the next request starts another."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        if process is not None:
            await process.wait()


def _framed(message: Mapping[str, Any]) -> bytes:
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data


def _ended_by(status: int) -> str:
    if status == -getattr(signal, "SIGXCPU", 0):
        return f"it took more than {CPU_SECONDS} s of CPU time"
    return f"its process ended with status {status}"
