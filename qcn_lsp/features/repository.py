"""`qcn/context`, a request of our own: what the model sees of a workspace folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsprotocol import types
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams

from qcn_lsp.engine.messages import EngineUnavailable, Superseded
from qcn_lsp.uris import file_path

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

CONTEXT = "qcn/context"


def register(server: "QcnServer") -> None:
    """Answer the request on `server`."""

    @server.feature(CONTEXT)
    async def handle(params: dict[str, Any] | list[Any] | None) -> dict[str, Any]:
        return await describe(server, params)


async def describe(server: "QcnServer", params: object) -> dict[str, Any]:
    """Answer with the engine's view of the folder `{uri}`, laid out and read for this if need be.

    With `{now: true}` nothing is begun or waited for. Fails with the reason where there is no
    context.
    """
    root = workspace_root(server, params)
    now = isinstance(params, dict) and params.get("now") is True
    try:
        if not now:
            await server.engine.ensure_ready()  # which says how it completes
        by_chat = server.completes_by_chat
        contexts = server.chat_contexts if by_chat else server.contexts
        if now:
            return await contexts.describe_now(root)
        link = server.engine_for("chat") if by_chat else server.engine
        await link.ensure_ready()
        if link.own_engine is None:
            raise EngineUnavailable("only our own engine keeps contexts: see `engine.url`")
        return await contexts.describe(root, link.own_engine)
    except (EngineUnavailable, Superseded) as problem:
        failed = types.LSPErrorCodes.RequestFailed.value
        raise JsonRpcException(str(problem), failed) from problem


def workspace_root(server: "QcnServer", params: object) -> Path:
    """Return the workspace folder that `{uri}` names; raises `JsonRpcInvalidParams`."""
    uri = params.get("uri") if isinstance(params, dict) else None
    root = file_path(uri) if isinstance(uri, str) else None
    if root is None or root not in server.workspace_roots:
        raise JsonRpcInvalidParams("uri: expected that of a workspace folder")
    return root
