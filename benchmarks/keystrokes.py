"""Typing at ten characters a second: what it costs the engine, and how soon ghost text is there.

At each place 200 characters of a file are deleted and typed again, with a request after each key as
an editor sends it, and a rest after each line. From the last key before a rest to its answer is one
sample; the server waits for a pause itself, which is part of it.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.editor import engine_totals, open_file, python_files
from benchmarks.results import percentiles
from qcn_lsp.commands.session import EditorSession
from qcn_lsp.features.suggestions import PAUSE_SECONDS

CHARACTERS = 200
SECONDS_PER_KEY = 0.1
FILES, QUICK_FILES = 12, 1


@dataclass
class Typed:
    """What was seen while typing."""

    milliseconds: list[float]
    """From the last key before each rest to its answer."""
    shown: int = 0
    pauses: int = 0
    """Gaps long enough for the server to ask in them, rests or not: a busy machine types late."""


async def measure(session: EditorSession, *, quick: bool) -> dict[str, Any]:
    """Type in the largest files of this repository."""
    before = await engine_totals()
    typed = Typed([])
    files = python_files(QUICK_FILES if quick else FILES)
    for path in files:
        await _type(session, path.as_uri(), open_file(session, path), typed)
        session.close(path.as_uri())
    spent = (await engine_totals())["qcn_requests_total"] - before.get("qcn_requests_total", 0.0)
    return {
        "characters": {"unit": "characters", "value": len(files) * CHARACTERS},
        "pauses": {"unit": "pauses", "value": typed.pauses},
        "requests_that_reached_the_engine": {"unit": "requests", "value": spent},
        "pause_to_ghost_text": percentiles(typed.milliseconds, "ms"),
        "suggestions": {"unit": "of 1", "value": round(typed.shown / len(typed.milliseconds), 2)},
    }


async def _type(session: EditorSession, uri: str, text: str, typed: Typed) -> None:
    """Type what stands from the middle line of `text` on, and leave it as it was."""
    lines = text.split("\n")
    start = len("\n".join(lines[: len(lines) // 2])) + 1
    end = start + CHARACTERS
    under_way: set[asyncio.Task[str | None]] = set()
    for place in range(start, end):
        began = time.perf_counter()
        now = text[: place + 1]
        session.change(uri, now + text[end:])
        row, column = now.count("\n"), len(now) - now.rfind("\n") - 1
        request = asyncio.create_task(session.offered(uri, row, column))
        under_way.add(request)
        request.add_done_callback(under_way.discard)
        if place + 1 == end or text[place + 1] == "\n":
            typed.shown += await request is not None
            typed.milliseconds.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(max(0.0, SECONDS_PER_KEY - (time.perf_counter() - began)))
        typed.pauses += time.perf_counter() - began > PAUSE_SECONDS
    await asyncio.gather(*under_way)
    session.change(uri, text)
