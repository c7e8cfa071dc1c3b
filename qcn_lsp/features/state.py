"""`qcn/state`, a request of our own: how the server is doing, without beginning anything."""

from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

STATE = "qcn/state"


def register(server: "QcnServer") -> None:
    """Answer the request on `server`."""

    @server.feature(STATE)
    def handle(params: dict[str, Any] | list[Any] | None) -> dict[str, Any]:
        return state(server)


def state(server: "QcnServer") -> dict[str, Any]:
    """Answer with the status, the model, how full each root's context is, and the last completions.

    Tokens are counted as the engine counts them; a root that no completion was asked for in has
    none yet. `refused` says why the model was not asked for the last completion, null where it was.
    """
    tally = server.tally
    return {
        "version": metadata.version("qcn-lsp"),
        "status": asdict(server.status.current),
        "model": server.settings.models.of("completion"),
        "roots": [
            {"uri": root.as_uri(), "name": root.name, **server.contexts.fill(root)}
            for root in server.workspace_roots
        ],
        "completions": {
            "accepted": tally.accepted,
            "rejected": tally.rejected,
            "milliseconds": list(tally.milliseconds),
            "refused": tally.refused,
        },
    }
