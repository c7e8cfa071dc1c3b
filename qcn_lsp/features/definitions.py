"""The definitions that a completion needs from files which the model does not read whole.

Looked up on a worker thread (`qcn_indexer/needed.py`), of which a completion waits for a moment
only: files that are looked into for the first time may take longer, and then what was needed a
keystroke ago stands in front, or nothing. It must be no older than seconds: it may hold what is
ignored by now.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcn_indexer.needed import NeededDefinitions
    from qcn_indexer.open_files import ShownFile

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.01
LASTS_SECONDS = 10.0
DOCUMENTS_KEPT = 32

Shown = tuple["ShownFile", ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """What a document needed, and when that was looked up."""

    needed: Shown
    at: float


class Definitions:
    """What the documents of each workspace folder need."""

    def __init__(self) -> None:
        self._finders: dict[Path, NeededDefinitions] = {}
        self._running: dict[Path, asyncio.Task[None]] = {}
        self._last: OrderedDict[tuple[Path, PurePosixPath], _Found] = OrderedDict()

    async def near(
        self,
        root: Path,
        path: PurePosixPath,
        text: str,
        cursor: int,
        *,
        shown: Container[PurePosixPath],
        buffers: Mapping[PurePosixPath, str],
    ) -> Shown:
        """Return what offset `cursor` of the document needs, without the files that are `shown`."""
        if running := self._running.get(root):
            await asyncio.wait({running}, timeout=PATIENCE_SECONDS)
        if running is None or running.done():
            work = self._look_up(root, path, text, cursor, shown, buffers)
            self._running[root] = task = asyncio.create_task(work)
            await asyncio.wait({task}, timeout=PATIENCE_SECONDS)
        last = self._last.get((root, path))
        if last is None or time.monotonic() - last.at > LASTS_SECONDS:
            return ()
        return tuple(file for file in last.needed if file.path not in shown)

    async def _look_up(
        self,
        root: Path,
        path: PurePosixPath,
        text: str,
        cursor: int,
        shown: Container[PurePosixPath],
        buffers: Mapping[PurePosixPath, str],
    ) -> None:
        from qcn_indexer.needed import NeededDefinitions

        finder = self._finders.setdefault(root, NeededDefinitions(root))
        try:
            found = await asyncio.to_thread(
                finder.near, path, text, cursor, shown=shown, buffers=buffers
            )
        except Exception:  # a mistake of ours: completions go on without
            logger.exception("the definitions that %s needs were not found", path)
            return
        self._last[root, path] = _Found(found, time.monotonic())
        self._last.move_to_end((root, path))
        while len(self._last) > DOCUMENTS_KEPT:
            self._last.popitem(last=False)
