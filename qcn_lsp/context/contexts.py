"""The contexts of all workspace roots, each begun with the first completion in it.

A context needs the engine. Until its base is laid out, and wherever anything about it fails,
completions use the open files alone: a context is a help, never a condition.

Roots do not mix: each has a context of its own (`live.py`), a fair share of the budget, and its
open files.

Rejected: to name contexts by their folder, so that windows share them. Their unsaved buffers
differ. What the layouts have in common the engine shares anyway, by the tokens.
"""

import logging
import time
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from qcn_lsp.context.live import LiveContext
from qcn_lsp.documents import Document
from qcn_lsp.engine.messages import Dialect, EngineUnavailable, Superseded

if TYPE_CHECKING:
    from qcn_lsp.engine.dialects import OwnEngine
    from qcn_lsp.server import QcnServer

logger = logging.getLogger(__name__)


class RepositoryContexts:
    """One context for each workspace root that completions, or chats, were asked for in."""

    def __init__(self, server: "QcnServer", dialect: Dialect = "fim") -> None:
        self._server = server
        self._dialect: Dialect = dialect
        self._live: dict[Path, LiveContext] = {}

    def state(self, root: Path) -> object | None:
        """What stands for the context's text as it is now; None where there is none yet."""
        live = self._live.get(root)
        return None if live is None or not live.ready else (live.name, live.generation)

    def fill(self, root: Path) -> dict[str, int]:
        """Return `tokens` of at most `limit` that the model reads of a root; nothing as yet: {}."""
        live = self._live.get(root)
        return {} if live is None else live.fill

    def begin(self, root: Path, engine: "OwnEngine") -> None:
        """Begin to read a root, unless that has been done."""
        live = self._live.get(root)
        if live is not None and (live.engine is engine or live.stopped):
            return
        if live is None or live.failed:
            self._live[root] = LiveContext(self._server, root, engine, self._dialect)
        else:  # the engine was started anew, and knows nothing yet
            live.engine, live.sent = engine, None

    async def name_for(self, root: Path, document: Document | None) -> str | None:
        """Return the context to complete `document` behind, brought up to date; or None.

        Of what is completed the text comes with the request; a chat completes no document.
        """
        live = self._live.get(root)
        if live is None or not live.ready:
            return None
        try:
            return await live.fresh_for(document)
        except (EngineUnavailable, Superseded) as problem:
            logger.info("answering without the repository: %s", problem)
            return None

    def shown_whole(self, root: Path) -> frozenset[PurePosixPath]:
        """Return the files of which the model reads all, as they are now."""
        live = self._live.get(root)
        return live.shown_whole if live is not None else frozenset()

    async def describe(self, root: Path, engine: "OwnEngine") -> dict[str, Any]:
        """Return what the model sees of a root, once it is laid out; begins that if need be.

        Raises `EngineUnavailable` where there is no context, with the reason.
        """
        self.begin(root, engine)
        return await self._live[root].described()

    async def describe_now(self, root: Path) -> dict[str, Any]:
        """As `describe`, without beginning anything or waiting for it to be laid out."""
        live = self._live.get(root)
        if live is None:
            raise EngineUnavailable(f"{root.name} is read from the first completion in it on.")
        if not live.settled:
            raise EngineUnavailable(f"{root.name} is being laid out for the model.")
        return await live.described()

    def forget_sent(self, root: Path) -> None:
        """Note that the engine has lost the context: it is given again with the next use."""
        if live := self._live.get(root):
            live.sent = None

    def changed_on_disk(self, paths: list[Path]) -> None:
        """Hear from the client that something happened at these paths."""
        for live in self._live.values():
            for path in paths:
                live.changes.add(path, time.monotonic())

    def end_outside(self, roots: Collection[Path]) -> None:
        """Stop watching folders that are none of the workspace any more."""
        for root in self._live.keys() - set(roots):
            self._live.pop(root).end()

    def end_all(self) -> None:
        """Stop watching; what the engine has read stays with it."""
        self.end_outside(())
