"""What a piece of a document needs from other files of its workspace folder: their definitions.

The same look-up as for completions, which waits for a moment only; an action waits for its end.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from qcn_lsp.documents import Document
from qcn_lsp.engine.messages import ContextFile
from qcn_lsp.features.location import buffers_below, location

if TYPE_CHECKING:
    from qcn_indexer.needed import NeededDefinitions

    from qcn_lsp.server import QcnServer


class Elsewhere:
    """Looks up definitions, one at a time in each workspace folder."""

    def __init__(self, server: "QcnServer") -> None:
        self._server = server
        self._finders: dict[Path, tuple[NeededDefinitions, asyncio.Lock]] = {}

    async def needed(self, document: Document, offset: int) -> tuple[ContextFile, ...]:
        """Return what the code around `offset` needs; nothing where the user wants none shown."""
        from qcn_indexer.needed import NeededDefinitions

        path, root = location(document, self._server.workspace_roots)
        if root is None or not self._server.settings_in(root).context.repository:
            return ()
        if root not in self._finders:
            self._finders[root] = NeededDefinitions(root), asyncio.Lock()
        finder, lock = self._finders[root]
        buffers = buffers_below(self._server.documents, root)
        async with lock:
            found = await asyncio.to_thread(
                finder.near, path, document.text, offset, shown=(), buffers=buffers
            )
        return tuple(ContextFile(file.path.as_posix(), file.text) for file in found)
