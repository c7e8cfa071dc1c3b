"""`textDocument/didFocus`, Copilot's notification that the user looks at another document."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

DID_FOCUS = "textDocument/didFocus"


def register(server: "QcnServer") -> None:
    """Listen to the notification on `server`: the files used last stand nearest to the cursor."""

    # pygls hands the server to a handler whose first parameter it could be: `object` would do.
    @server.feature(DID_FOCUS)
    def handle(params: dict[str, Any] | list[Any] | None) -> None:
        identifier = params.get("textDocument") if isinstance(params, dict) else None
        uri = identifier.get("uri") if isinstance(identifier, dict) else None
        if isinstance(uri, str):  # null when the focus left for what is no document
            server.documents.focus(uri)
