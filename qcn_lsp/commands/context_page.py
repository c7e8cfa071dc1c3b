"""`qcn context --open`: what the model sees of a repository, drawn in the browser."""

import asyncio
import html
import webbrowser
from pathlib import Path
from typing import Any

from qcn_lsp.commands.context import folder_at
from qcn_lsp.commands.errors import CommandError
from qcn_lsp.commands.session import EditorSession, editor_session
from qcn_lsp.engine.runtime import runtime_directory, write_private
from qcn_lsp.view.serving import ViewServer


def run(path: Path | None, tokens: int) -> int:
    """Serve the page for the repository at `path` until it is closed."""
    asyncio.run(_serve(folder_at(path), tokens))
    return 0


async def _serve(root: Path, tokens: int) -> None:
    async with editor_session(root, options={"context": {"tokens": tokens}}) as session:
        reading = asyncio.create_task(session.describe_context(root))  # begins it
        loop = asyncio.get_running_loop()

        def look(with_skipped: bool) -> dict[str, Any]:
            looking = _data(session, root, reading, with_skipped=with_skipped)
            return asyncio.run_coroutine_threadsafe(looking, loop).result()

        server = ViewServer(look)
        signpost = runtime_directory() / f"context-{server.server_port}.html"
        write_private(signpost, _leads_to(server.address))
        print(f"{server.address}\nOpen as long as the page is; end it with Ctrl-C.", flush=True)
        serving = asyncio.create_task(asyncio.to_thread(server.serve_until_gone))
        try:
            await asyncio.to_thread(webbrowser.open, signpost.as_uri())
            await serving
        finally:
            signpost.unlink(missing_ok=True)
            server.heard(patience=0)  # interrupted: its thread ends too
            reading.cancel()


async def _data(
    session: EditorSession, root: Path, reading: "asyncio.Task[Any]", *, with_skipped: bool
) -> dict[str, Any]:
    """Return what the page draws; see `Data` in `context.js`."""
    uri = {"uri": root.as_uri()}
    context, problem = None, ""
    try:
        if reading.done():
            reading.result()
        context = await session.ask("qcn/context", {**uri, "now": True})
    except CommandError as reason:
        problem = str(reason)
    return {
        "state": await session.ask("qcn/state", {}),
        "root": root.as_uri(),
        "context": context,
        "problem": problem,
        "skipped": await session.ask("qcn/skipped", uri) if with_skipped else None,
    }


def _leads_to(address: str) -> str:
    """Return a page that leads to another one."""
    target = html.escape(address)
    return (
        '<!doctype html><meta charset="utf-8"><title>qcn</title>'
        f'<meta http-equiv="refresh" content="0; url={target}"><a href="{target}">Go on</a>\n'
    )
