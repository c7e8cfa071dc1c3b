"""The product's server with a few requests more, by which tests see and provoke what they must.

Started as a process: `python lsp_probe_server.py`.
"""

import asyncio
import os
import sys
import threading
from typing import Any

from qcn_lsp.lifecycle import serve_stdio
from qcn_lsp.log import set_up_log
from qcn_lsp.server import QcnServer, create_server


def main() -> int:
    server = create_server()
    set_up_log(server)
    add_views(server)
    add_provocations(server)
    return serve_stdio(server)


def add_views(server: QcnServer) -> None:
    """Requests that show the server's state."""

    @server.feature("test/echo")
    def echo(params: Any) -> Any:
        return params

    @server.feature("test/modules")
    def modules(_params: Any) -> list[str]:
        return sorted(sys.modules)

    @server.feature("test/text")
    def text(params: Any) -> str | None:
        document = server.documents.get(params["uri"])
        return None if document is None else document.text

    @server.feature("test/textAfterWaiting")
    async def text_after_waiting(params: Any) -> list[str]:
        document = server.documents.get(params["uri"])
        assert document is not None
        return [document.text]

    @server.feature("test/state")
    def state(_params: Any) -> dict[str, Any]:
        return {
            "roots": [str(root) for root in server.workspace_roots],
            "encoding": server.encoding,
            "maxTokens": server.settings.completion.max_tokens,
            "maxTokensIn": {
                str(root): server.settings_in(root).completion.max_tokens
                for root in server.workspace_roots
            },
            "popup": server.settings.completion.popup,
            "open": [document.uri for document in server.documents.open_documents()],
        }


def add_provocations(server: QcnServer) -> None:
    """Requests that do what handlers and libraries should not."""
    unblock = threading.Event()

    @server.feature("test/raise")
    async def raising(_params: Any) -> None:
        raise ValueError("the handler's reason")

    @server.feature("test/exit")
    async def exiting(_params: Any) -> None:
        sys.exit(5)

    @server.feature("test/notJson")
    def not_json(params: Any) -> Any:
        return float("nan") if params == "nan" else object()

    @server.feature("test/print")
    def printing(_params: Any) -> None:
        print("a library prints")
        os.write(1, b"a C library prints\n")
        os.system("echo a child process prints")

    @server.feature("test/wait")
    async def waiting(params: Any) -> None:
        server.protocol.notify("test/waiting", params)
        try:
            await asyncio.Event().wait()
        finally:
            server.protocol.notify("test/ended", params)

    @server.feature("test/stubborn")
    async def stubborn(params: Any) -> str:
        server.protocol.notify("test/waiting", params)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            server.protocol.notify("test/ended", params)
        return "late"

    @server.thread()
    @server.feature("test/thread")
    def blocking(params: Any) -> str:
        unblock.clear()
        server.protocol.notify("test/waiting", params)
        unblock.wait()
        return "unblocked"

    @server.feature("test/unblock")
    def unblocking(_params: Any) -> None:
        unblock.set()

    @server.feature("test/notifyAndRaise")
    def notified(_params: Any) -> None:
        raise ValueError("a notification's handler fails")

    @server.command("test.wait")
    async def command(name: str) -> None:
        await waiting(name)


if __name__ == "__main__":
    sys.exit(main())
