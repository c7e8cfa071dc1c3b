"""Text for the user to read, and for no file of theirs: a Markdown document of our own.

Where the client asks servers for the texts of their documents (`workspace/textDocumentContent`, LSP
3.18) it is one that cannot be edited and grows while the model writes. None of the others fills an
untitled document for a server: there it is a file, readable by its user alone, in a folder of the
runtime directory that goes with the server, and shown once it is whole. Editors do not read a file
again by themselves, or ask before they do.
"""

import asyncio
import logging
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from lsprotocol import types
from pygls.exceptions import JsonRpcException

from qcn_lsp.features.actions.abilities import Abilities
from qcn_lsp.features.actions.provider import Shown
from qcn_lsp.postprocess.hidden import hidden_characters
from qcn_lsp.uris import file_uri

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

logger = logging.getLogger(__name__)

SCHEME = "qcn"
"""Of the URIs of documents whose text the client asks us for."""
MOST_TEXTS = 16  # that are kept
LONGEST_MESSAGE = 1_500  # characters: what a message box still shows


class Reading:
    """Shows texts, each in a document named by its title."""

    def __init__(self, server: "QcnServer") -> None:
        self._server = server
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._texts: dict[str, str] = {}  # Markdown, by its document's URI, the newest last
        self._count = 0
        self._own = secrets.token_hex(4)  # an editor may have documents of several servers

    @contextmanager
    def draft(self) -> "Iterator[Draft]":
        """Yield what shows a text while the block writes it."""
        draft = Draft(self)
        try:
            yield draft
        except BaseException:
            draft.break_off()
            raise

    def text_of(self, uri: str) -> str:
        """Return what stands in a document of ours."""
        text = self._texts.get(unquote(uri))
        return "This text is no longer kept: ask for it again.\n" if text is None else inert(text)

    def keep(self, text: Shown, uri: str | None = None) -> str:
        """Keep what stands in a document of ours, which is a new one where none is named."""
        if uri is None:
            self._count += 1
            uri = f"{SCHEME}://{self._own}/{self._count}/{quote(_file_name(text))}"
        self._texts[unquote(uri)] = text.markdown
        for old in list(self._texts)[:-MOST_TEXTS]:
            del self._texts[old]
        return uri

    @property
    def grows(self) -> bool:
        """Whether the client can show a text that is still being written."""
        client = Abilities.of(self._server.client_capabilities)
        return client.shows_documents and client.asks_for_texts

    async def refresh(self, uri: str) -> None:
        """Have the client ask for the text of a document once more."""
        params = types.TextDocumentContentRefreshParams(uri=uri)
        await self._server.workspace_text_document_content_refresh_async(params)

    async def show(self, text: Shown) -> None:
        """Show `text`; where the client opens no documents, as much as a message box holds."""
        client = Abilities.of(self._server.client_capabilities)
        if client.shows_documents and await self.open(file_uri(self._write(text))):
            return
        message = inert(text.markdown)
        if len(message) > LONGEST_MESSAGE:
            message = message[:LONGEST_MESSAGE] + " […]"
        self._server.window_show_message(types.ShowMessageParams(types.MessageType.Info, message))

    async def open(self, uri: str) -> bool:
        """Have the client open a document; return whether it has."""
        shown = await self._server.window_show_document_async(
            types.ShowDocumentParams(uri=uri, take_focus=True)
        )
        return shown.success

    def _write(self, text: Shown) -> Path:
        from qcn_lsp.engine.runtime import runtime_directory

        if self._folder is None:  # made 0700, and removed when the server ends
            self._folder = tempfile.TemporaryDirectory(prefix="read-", dir=runtime_directory())
        path = Path(self._folder.name, _file_name(text))
        path.touch(mode=0o600)
        path.write_text(inert(text.markdown), encoding="utf-8")
        return path


class Draft:
    """A text on its way to the user: shown as it grows where the client can, else at its end.

    The client is asked to refresh the document when it has done so the last time: a slow one sees
    larger steps.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._text: Shown | None = None
        self._uri: str | None = None
        self._opened = False
        self._stale = False  # there is more than the client has been told of
        self._following: asyncio.Task[None] | None = None

    def grow(self, text: Shown) -> None:
        """Show as much as there is."""
        if not self._reading.grows:
            return
        self._text, self._stale = text, True
        self._uri = self._reading.keep(text, self._uri)
        if self._following is None or (self._opened and self._following.done()):
            self._following = asyncio.create_task(self._follow(self._uri))

    async def finish(self, text: Shown) -> None:
        """Show the whole."""
        self.grow(text)
        if self._following is not None:
            await self._following
        if not self._opened:
            await self._reading.show(text)

    def break_off(self) -> None:
        """Say in the document that there will be no more."""
        if self._text is not None:
            self.grow(Shown(self._text.title, f"{self._text.markdown}\n\n… (not finished)\n"))

    async def _follow(self, uri: str) -> None:
        try:
            if not self._opened:
                self._stale = False
                self._opened = await self._reading.open(uri)
            while self._opened and self._stale:
                self._stale = False
                await self._reading.refresh(uri)
        except JsonRpcException as refusal:
            logger.warning("the client does not show what is written: %s", refusal)
            self._opened = False


def _file_name(text: Shown) -> str:
    return (re.sub(r"[^\w-]+", "-", text.title).strip("-")[:60] or "text") + ".md"


_DRAWN = ("image", "html_block", "html_inline")
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
    shown = "".join(parts) + _escaped(markdown[end:])
    # What is code is told by a parser alone: where it finds more than we, code is escaped too.
    return _escaped(markdown) if _draws(shown) else shown


def _draws(markdown: str) -> bool:
    """Return whether a preview would draw an image or HTML."""
    from markdown_it import MarkdownIt

    for token in MarkdownIt("js-default", {"html": True}).parse(markdown):
        if any(one.type in _DRAWN for one in (token, *(token.children or ()))):
            return True
    return False


def _escaped(text: str) -> str:
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace("![", "!\\[")
