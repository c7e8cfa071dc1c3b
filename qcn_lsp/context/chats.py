"""Chats behind the repository: their context is begun by the first of them, and used once read.

A chat is answered without the repository until the engine has read it, and where it keeps none: an
endpoint that is not ours, or one that was started anew meanwhile.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qcn_lsp.engine.messages import (
    ChatListener,
    ChatRequest,
    ChatResult,
    EngineUnavailable,
    UnknownContext,
)

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer


async def chat_in(
    server: "QcnServer",
    root: Path | None,
    request: ChatRequest,
    listener: ChatListener | None = None,
) -> ChatResult:
    """Ask the chat model, with the workspace folder `root` in front where it has read that.

    Raises as `EngineLink.chat`.
    """
    link = server.engine_for("chat")
    await link.ensure_ready()
    name = None if root is None else await _context(server, root)
    try:
        return await link.chat(replace(request, context=name), listener)
    except UnknownContext:  # it was lost at this very moment; the next chat gives it again
        return await link.chat(request, listener)


async def _context(server: "QcnServer", root: Path) -> str | None:
    """The name of the context of a root, if it is read."""
    engine = server.engine_for("chat").own_engine
    if engine is None or not server.settings_in(root).context.repository:
        return None
    server.chat_contexts.begin(root, engine)
    name = await server.chat_contexts.name_for(root, None)
    if name is None:
        return None
    try:
        view = await engine.describe_context(name)
    except UnknownContext:
        server.chat_contexts.forget_sent(root)
        return None
    except EngineUnavailable:
        return None
    return None if view.get("reading") else name
