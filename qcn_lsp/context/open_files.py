"""The other open files that stand in front of a completion where no repository context does.

Which of them may be shown is for the workspace folder's rules to say, the same as for what is read
from disk. To ask them takes files and a process of git's, so it is done on a worker thread and the
verdicts are kept: for `VERDICT_SECONDS`, and not past a change of the rules that a client tells of.
A file without a verdict is not shown.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from qcn_indexer.ignore import IN_FOLDERS, user_rules
from qcn_indexer.open_files import OpenFile, ShownFile, choose, root_of, withheld

from qcn_lsp.uris import file_path

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

logger = logging.getLogger(__name__)

VERDICT_SECONDS = 10.0


class OpenFiles:
    """The editor's open files, as far as the model may see them."""

    def __init__(self, server: "QcnServer") -> None:
        self._server = server
        self._verdicts: dict[tuple[Path, PurePosixPath], str | None] = {}
        self._judged_at = 0.0
        self._turn = asyncio.Lock()

    def changed_on_disk(self, paths: Iterable[Path]) -> None:
        """Hear that something happened at these paths."""
        if any(path.name in IN_FOLDERS for path in paths):
            self._verdicts = {}

    async def judge(self, root: Path) -> None:
        """Have a verdict on each open file of a workspace root; those that wait do so in turn."""
        async with self._turn:
            if time.monotonic() - self._judged_at > VERDICT_SECONDS:
                self._verdicts, self._judged_at = {}, time.monotonic()
            verdicts = self._verdicts  # another one, once the rules have changed meanwhile
            waiting = [path for path in self._paths(root) if (root, path) not in verdicts]
            if waiting:
                verdicts |= await asyncio.to_thread(_judged, root, waiting)

    def beside(self, path: Path, root: Path) -> tuple[ShownFile, ...]:
        """Return the open files to show beside that at `path` below `root`, in their order."""
        files = [
            OpenFile(other, document.text)
            for document in self._server.documents.open_documents()
            if (other := file_path(document.uri)) is not None and other != path
        ]
        selection = choose(
            files,
            root=root,
            roots=self._server.workspace_roots,
            ruled_out=lambda below: self._verdicts.get((root, below), "it is not judged yet"),
        )
        for left_out, reason in selection.left_out:
            logger.debug("%s is not shown to the model: %s", left_out, reason)
        return selection.shown

    def _paths(self, root: Path) -> list[PurePosixPath]:
        roots = self._server.workspace_roots
        paths = (file_path(one.uri) for one in self._server.documents.open_documents())
        return [
            PurePosixPath(path.relative_to(root).as_posix())
            for path in paths
            if path is not None and root_of(path, roots) == root
        ]


def _judged(
    root: Path, paths: Sequence[PurePosixPath]
) -> dict[tuple[Path, PurePosixPath], str | None]:
    users = user_rules(root)  # of git, by one process
    return {(root, path): withheld(root, path, users) for path in paths}
