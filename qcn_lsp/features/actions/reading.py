"""Text for the user to read, and for no file of theirs: a Markdown document of our own.

The protocol has no way to show a text but a message box, and none of the editors fills an untitled
document for a server. So it is a file, readable by its user alone, in a folder of the runtime
directory that goes with the server.
"""

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lsprotocol import types

from qcn_lsp.features.actions.abilities import Abilities
from qcn_lsp.features.actions.provider import Shown
from qcn_lsp.postprocess.hidden import hidden_characters
from qcn_lsp.uris import file_uri

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

LONGEST_MESSAGE = 1_500  # characters: what a message box still shows


class Reading:
    """Shows texts, each in a document named by its title."""

    def __init__(self, server: "QcnServer") -> None:
        self._server = server
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    async def show(self, text: Shown) -> None:
        """Show `text`; where the client opens no documents, as much as a message box holds."""
        client = Abilities.of(self._server.client_capabilities)
        if client.shows_documents:
            shown = await self._server.window_show_document_async(
                types.ShowDocumentParams(uri=file_uri(self._write(text)), take_focus=True)
            )
            if shown.success:
                return
        message = inert(text.markdown)
        if len(message) > LONGEST_MESSAGE:
            message = message[:LONGEST_MESSAGE] + " […]"
        self._server.window_show_message(types.ShowMessageParams(types.MessageType.Info, message))

    def _write(self, text: Shown) -> Path:
        from qcn_lsp.engine.runtime import runtime_directory

        if self._folder is None:  # made 0700, and removed when the server ends
            self._folder = tempfile.TemporaryDirectory(prefix="read-", dir=runtime_directory())
        name = re.sub(r"[^\w-]+", "-", text.title).strip("-")[:60] or "text"
        path = Path(self._folder.name, f"{name}.md")
        path.touch(mode=0o600)
        path.write_text(inert(text.markdown), encoding="utf-8")
        return path


_CODE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n.*?^ {0,3}\1[`~]*[ \t]*$|`[^`\n]+`", re.M | re.S)


def inert(markdown: str) -> str:
    """Return Markdown that a preview shows without fetching anything, and with nothing hidden.

    A model may have been told, by what it has read, to draw an image from an address that carries
    what it knows. Outside of code, images and HTML are shown as they are written.
    """
    for hidden in hidden_characters(markdown):
        markdown = markdown.replace(hidden, "")
    parts, end = [], 0
    for code in _CODE.finditer(markdown):
        parts += [_escaped(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join(parts) + _escaped(markdown[end:])


def _escaped(text: str) -> str:
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace("![", "!\\[")
