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
    try:
        if isinstance(params, dict) and params.get("now") is True:
            return await server.contexts.describe_now(root)
        await server.engine.ensure_ready()
        engine = server.engine.own_engine
        if engine is None:
            raise EngineUnavailable("only our own engine keeps contexts: see `engine.url`")
        return await server.contexts.describe(root, engine)
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
