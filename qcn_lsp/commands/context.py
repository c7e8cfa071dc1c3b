"""`qcn context [PATH]`: what the model sees of a repository, zone by zone."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

from qcn_indexer.walk import Skipped, walk
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qcn_lsp.commands.console import make_console
from qcn_lsp.commands.errors import CommandError
from qcn_lsp.commands.session import EditorSession, editor_session

PAUSE_SECONDS = 0.2  # between two looks at how far the engine has read


def run(path: Path | None, tokens: int, *, as_json: bool) -> int:
    """Lay out and read the repository at `path` as in an editor, and show the result.

    `tokens` is the setting `context.tokens`.
    """
    root = (path or Path.cwd()).resolve()
    if not root.is_dir():
        raise CommandError(f"{root} is no folder")
    view = asyncio.run(_read(root, tokens))
    skipped = [(str(item.path), item.reason) for item in walk(root) if isinstance(item, Skipped)]
    if as_json:
        print(json.dumps(view | {"skipped": skipped}, ensure_ascii=False, indent=1))
        return 0
    _show(make_console(), view, skipped)
    return 0


async def _read(root: Path, tokens: int) -> dict[str, Any]:
    async with editor_session(root, options={"context": {"tokens": tokens}}) as session:
        return await _until_read(session, root)


async def _until_read(session: EditorSession, root: Path) -> dict[str, Any]:
    while True:
        view = await session.describe_context(root)
        if view["tokens"] in view["checkpoints"]:
            return view
        await asyncio.sleep(PAUSE_SECONDS)


def _show(console: Console, view: dict[str, Any], skipped: list[tuple[str, str]]) -> None:
    console.print(
        f"{view['tokens']:,} of {view['limit']:,} tokens; the engine keeps "
        f"{view['bytes']['used'] / 2**20:.0f} of {view['bytes']['budget'] / 2**20:.0f} MiB of what "
        f"it has read, and can go on from {len(view['checkpoints'])} places in this context.",
        highlight=False,
    )
    console.print(_segments(view))
    for refresh in view["refreshes"][-1:]:
        console.print(
            f"Last refresh: {refresh['reused']:,} tokens known already, {refresh['computed']:,} "
            f"read in {refresh['milliseconds']:.0f} ms.",
            highlight=False,
        )
    _show_reasons(console, "No room for", view["left_out"])
    _show_reasons(console, "Not read", skipped)


def _segments(view: dict[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("zone")
    table.add_column("file")
    table.add_column("tokens", justify="right")
    table.add_column("changes often")
    for segment in view["segments"]:
        path, hot = Text(segment["path"]), "yes" if segment["hot"] else ""
        table.add_row(segment["zone"], path, f"{segment['tokens']:,}", hot)
    return table


def _show_reasons(console: Console, title: str, items: list[Any]) -> None:
    """Show how many files there are for each reason, and one of them."""
    counts = Counter(reason for _, reason in items)
    for reason, count in counts.most_common():
        example = next(path for path, why in items if why == reason)
        more = f" and {count - 1:,} more" if count > 1 else ""
        console.print(Text(f"{title}: {example}{more}: {reason}"))
