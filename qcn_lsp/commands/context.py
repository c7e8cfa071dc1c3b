"""`qcn context [PATH]`: what the model sees of a repository; `qcn context purge`: forgetting it."""

import asyncio
import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qcn_indexer.git_folders import repository_name
from qcn_indexer.walk import Skipped, walk
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qcn_lsp.commands.console import make_console
from qcn_lsp.commands.engine import running_engines
from qcn_lsp.commands.errors import CommandError
from qcn_lsp.commands.session import EditorSession, editor_session
from qcn_lsp.context.given import forget_given
from qcn_lsp.engine.dialects import OwnEngine, Purged
from qcn_lsp.engine.process import purge_command, require_engine_packages
from qcn_lsp.engine.runtime import known_addresses, runtime_directory

PAUSE_SECONDS = 0.2  # between two looks at how far the engine has read


def run(path: Path | None, tokens: int, *, as_json: bool) -> int:
    """Lay out and read the repository at `path` as in an editor, and show the result.

    `tokens` is the setting `context.tokens`.
    """
    root = folder_at(path)
    view = asyncio.run(_read(root, tokens))
    skipped = [(str(item.path), item.reason) for item in walk(root) if isinstance(item, Skipped)]
    if as_json:
        print(json.dumps(view | {"skipped": skipped}, ensure_ascii=False, indent=1))
        return 0
    _show(make_console(), view, skipped)
    return 0


def purge(path: Path | None, *, as_json: bool) -> int:
    """Have all that was ever read of the repository at `path` forgotten, and removed from disk.

    Where no engine runs, none is started for it: then only the disk holds anything. A folder that
    is gone goes by its name; raises `CommandError` where nothing is kept under that.
    """
    root = (path or Path.cwd()).resolve()
    if not (is_gone := not root.exists()):
        folder_at(root)
    repo = repository_name(root)
    purged = asyncio.run(_purge_engines(repo))
    if purged is None:
        require_engine_packages()
        done = subprocess.run(
            purge_command(repo), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise CommandError(done.stderr.strip())
        purged = Purged(contexts=0, files=int(done.stdout))
    forget_given(root)
    if is_gone and purged == Purged(contexts=0, files=0):
        raise CommandError(_nothing_of(root, repo))
    if as_json:
        print(json.dumps({"repo": repo, "contexts": purged.contexts, "files": purged.files}))
    else:
        print(
            f"Nothing is kept any more of what was read of {repo}: contexts forgotten: "
            f"{purged.contexts}, files removed: {purged.files}."
        )
    return 0


def _nothing_of(root: Path, repo: str) -> str:
    import platformdirs

    kept = platformdirs.user_cache_path("qcn", appauthor=False) / "contexts"
    return (
        f"there is no folder {root}, and nothing is kept of a repository named {repo}. What was "
        "read in a linked work tree is kept under the name of its main one's folder: name that. To "
        f"remove what is kept of all repositories: qcn engine stop, then remove {kept}"
    )


async def _purge_engines(repo: str) -> Purged | None:
    """Have each engine forget; return what that ended and removed, None where no engine runs."""
    purged = None
    for address, health in await running_engines(known_addresses(runtime_directory())):
        if health is None:
            raise CommandError(
                f"the engine at {address} does not answer; end it with: qcn engine stop"
            )
        engine = OwnEngine(address.client(), None)
        try:
            more = await engine.purge(repo)
            before = purged or Purged(contexts=0, files=0)
            purged = Purged(before.contexts + more.contexts, before.files + more.files)
        finally:
            await engine.close()
    return purged


def folder_at(path: Path | None) -> Path:
    """Return the folder that is meant, this one by default; raises `CommandError` for no folder."""
    root = (path or Path.cwd()).resolve()
    if not root.is_dir():
        raise CommandError(f"{root} is no folder")
    return root


async def _read(root: Path, tokens: int) -> dict[str, Any]:
    async with editor_session(root, options={"context": {"tokens": tokens}}) as session:
        return await _until_read(session, root)


async def _until_read(session: EditorSession, root: Path) -> dict[str, Any]:
    while True:
        view = await session.describe_context(root)
        if not view["reading"]:
            return view
        await asyncio.sleep(PAUSE_SECONDS)


def _show(console: Console, view: dict[str, Any], skipped: list[tuple[str, str]]) -> None:
    _say(
        console,
        f"{view['tokens']:,} of {view['budget']:,} tokens, the rest kept free for changes; the "
        f"model takes {view['limit']:,}. {_places(view)}",
    )
    console.print(_segments(view))
    kept = view["bytes"]
    disk = _of(kept.get("disk_used"), kept.get("disk_budget"))
    _say(
        console,
        f"Kept of all that was read: {_of(kept['used'], kept['budget'])} in memory, "
        + (f"{disk} on disk." if disk else "nothing on disk."),
    )
    if view["refreshes"]:
        console.print(_refreshes(view["refreshes"]))
    _show_reasons(console, "No room for", view["left_out"])
    _show_reasons(console, "Not read", skipped)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False)


def _of(used: int | None, budget: int | None) -> str:
    """Return used of budgeted bytes in words; nothing where there is no such place."""
    if used is None:
        return ""
    return f"{used / 2**20:.0f}" + (f" of {budget / 2**20:.0f} MiB" if budget else " MiB")


def _places(view: dict[str, Any]) -> str:
    """Return from where reading can go on, which `_segments` marks where that begins a file."""
    count = len(view["checkpoints"])
    marked = {segment["start"] for segment in view["segments"]} & set(view["checkpoints"])
    return f"Reading can go on from {count:,} place{'s' * (count != 1)} in them" + (
        ", those in front of a file marked with *." if marked else "."
    )


def _segments(view: dict[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "zone", "file", "shown as"):
        table.add_column(name)
    table.add_column("tokens", justify="right")
    table.add_column("why")
    checkpoints = set(view["checkpoints"])
    for segment in view["segments"]:
        table.add_row(
            "*" if segment["start"] in checkpoints else "",
            segment["zone"],
            Text(segment["path"]),
            segment["kind"],
            f"{segment['tokens']:,}",
            ", ".join(segment["reasons"]),
        )
    return table


def _refreshes(refreshes: Sequence[dict[str, Any]]) -> Table:
    """Return the last refreshes, oldest first; in tokens."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="Last refreshes", title_justify="left")
    for name in ("known already", "of those from disk", "read", "milliseconds"):
        table.add_column(name, justify="right")
    for one in refreshes:
        counts = (one["reused"], one.get("restored", 0), one["computed"], one["milliseconds"])
        table.add_row(*(f"{count:,.0f}" for count in counts))
    return table


def _show_reasons(console: Console, title: str, items: list[Any]) -> None:
    """Show how many files there are for each reason, whatever its detail, and one of them."""
    reasons = [(path, reason.partition(" (")[0]) for path, reason in items]
    for reason, count in Counter(reason for _, reason in reasons).most_common():
        example = next(path for path, why in reasons if why == reason)
        more = f" and {count - 1:,} more" if count > 1 else ""
        console.print(Text(f"{title}: {example}{more}: {reason}"))
