"""`qcn/skipped`, a request of our own: which files of a folder no model ever reads, and why."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcn_indexer.walk import Skipped, walk

from qcn_lsp.features.repository import workspace_root

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

SKIPPED = "qcn/skipped"
EXAMPLES = 50  # of each reason


def register(server: "QcnServer") -> None:
    """Answer the request on `server`."""

    @server.feature(SKIPPED)
    async def handle(params: dict[str, Any] | list[Any] | None) -> list[dict[str, Any]]:
        return await asyncio.to_thread(skipped, workspace_root(server, params))


def skipped(root: Path) -> list[dict[str, Any]]:
    """Return each reason with how many files (or folders, as a whole) it holds for, and some."""
    return by_reason((str(one.path), one.reason) for one in walk(root) if isinstance(one, Skipped))


def by_reason(items: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Group (path, reason) by reason, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for path, reason in items:
        groups.setdefault(reason, []).append(path)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [
        {"reason": reason, "count": len(paths), "examples": paths[:EXAMPLES]}
        for reason, paths in ordered
    ]
