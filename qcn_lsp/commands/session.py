"""An editor's side of the protocol: starts `qcn-lsp` and asks it as an editor would.

The commands complete through the same server, over the same protocol, as the user's editor does,
so what they show is what an editor gets. pygls' client does the framing; this module adds what an
editor has: documents with versions, the server's status, and an end to waiting when the server
is gone.
"""

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.lsp.client import LanguageClient
from qcn_indexer import languages

from qcn_lsp.commands.errors import CommandError
from qcn_lsp.positions import count_units, plain_lines

START_SECONDS = 60.0
ANSWER_SECONDS = 120.0
LEAVE_SECONDS = 10.0


@dataclass(frozen=True)
class ServerStatus:
    """The server's last `didChangeStatus`, and how far the model is loaded (percent or None)."""

    busy: bool = False
    kind: str = "Normal"
    message: str = ""
    percentage: int | None = None


@dataclass(frozen=True)
class Suggestion:
    """What was suggested after the cursor (None: nothing, for a reason), and how long it took."""

    text: str | None
    milliseconds: float
    reason: str | None = None


class EditorSession:
    """A running server, its documents and its status; made by `editor_session`."""

    def __init__(self, on_status: Callable[[ServerStatus], None]) -> None:
        self.status = ServerStatus()
        self._on_status = on_status
        self._changed = asyncio.Event()
        self._client = _Client("qcn", metadata.version("qcn-lsp"))
        self._versions: dict[str, int] = {}
        self._texts: dict[str, str] = {}
        self._register()

    async def start(self, root: Path, options: Mapping[str, Any] | None = None) -> None:
        """Start the server on the workspace folder `root`, with initialization options."""
        await self._client.start_io(sys.executable, "-P", "-m", "qcn_lsp")
        self._client.keep_stderr()
        async with self._answer_within(START_SECONDS):
            await self._client.initialize_async(
                types.InitializeParams(
                    capabilities=_CAPABILITIES,
                    process_id=os.getpid(),
                    client_info=types.ClientInfo("qcn", metadata.version("qcn-lsp")),
                    root_uri=root.as_uri(),
                    initialization_options=dict(options or {}),
                    workspace_folders=[types.WorkspaceFolder(root.as_uri(), root.name)],
                )
            )
        self._client.initialized(types.InitializedParams())

    async def stop(self) -> None:
        """End the server as the protocol says; one that does not leave is killed."""
        server = self._client.process
        if server is None:
            return
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                if server.returncode is None:
                    await self._client.shutdown_async(None)
                    self._client.exit(None)
                await server.wait()
        except (TimeoutError, RuntimeError, OSError):  # silent, or gone in between
            if server.returncode is None:
                server.kill()
        await self._client.stop()  # type: ignore[no-untyped-call]  # pygls leaves it bare

    def open(self, uri: str, language: str, text: str) -> None:
        """Open a document."""
        self._versions[uri], self._texts[uri] = 1, text
        item = types.TextDocumentItem(uri, language, 1, text)
        self._client.text_document_did_open(types.DidOpenTextDocumentParams(item))

    def change(self, uri: str, text: str) -> None:
        """Replace a document's text."""
        self._versions[uri] += 1
        self._texts[uri] = text
        self._client.text_document_did_change(
            types.DidChangeTextDocumentParams(
                types.VersionedTextDocumentIdentifier(self._versions[uri], uri),
                [types.TextDocumentContentChangeWholeDocument(text)],
            )
        )

    def close(self, uri: str) -> None:
        """Close a document."""
        del self._versions[uri], self._texts[uri]
        self._client.text_document_did_close(
            types.DidCloseTextDocumentParams(types.TextDocumentIdentifier(uri))
        )

    async def suggest(self, uri: str, line: int, column: int) -> Suggestion:
        """Ask for a suggestion at a place: `line` from 0, `column` in characters from 0.

        Waits while the model is loading. Raises `CommandError` when the server says that it
        cannot complete, or is gone.
        """
        while True:
            began = time.perf_counter()
            text = await self._ask(uri, line, column)
            took = (time.perf_counter() - began) * 1000
            if text is None and self.status.kind != "Normal":
                raise CommandError(self.status.message)
            if text is not None or not self.status.busy:
                return Suggestion(text, took, await self._why_none() if text is None else None)
            await self._until_not_busy()

    async def _why_none(self) -> str:
        state = await self.ask("qcn/state", {})
        return state["completions"]["refused"] or "the model offers nothing that fits here"

    async def offered(self, uri: str, line: int, column: int) -> str | None:
        """Ask once, as an editor does by itself while one types; None where nothing is offered."""
        return await self._ask(uri, line, column, types.InlineCompletionTriggerKind.Automatic)

    async def describe_context(self, root: Path) -> dict[str, Any]:
        """Return what the model sees of the workspace folder; waits while the model is loading.

        Raises `CommandError` with the server's reason where it has no context.
        """
        described: dict[str, Any] = await self.ask("qcn/context", {"uri": root.as_uri()})
        return described

    async def ask(self, method: str, params: dict[str, Any]) -> Any:
        """Send a request of our own; raises `CommandError` where it is refused."""
        async with self._answer_within(ANSWER_SECONDS):
            try:
                answer = await self._client.protocol.send_request_async(method, params)
            except JsonRpcException as refusal:
                raise CommandError(refusal.message) from refusal
        return plain_json(answer)

    async def _ask(
        self,
        uri: str,
        line: int,
        column: int,
        kind: types.InlineCompletionTriggerKind = types.InlineCompletionTriggerKind.Invoked,
    ) -> str | None:
        before = plain_lines(self._texts[uri])[line][:column]
        params = types.InlineCompletionParams(
            text_document=types.TextDocumentIdentifier(uri),
            position=types.Position(line, count_units(before, types.PositionEncodingKind.Utf16)),
            context=types.InlineCompletionContext(kind),
        )
        async with self._answer_within(ANSWER_SECONDS):
            answer = await self._client.text_document_inline_completion_async(params)
        items = answer.items if isinstance(answer, types.InlineCompletionList) else answer or []
        return _after_cursor(items[0], before) if items else None

    async def _until_not_busy(self) -> None:
        """Wait for the model; raises `CommandError` when the server ends meanwhile."""
        gone = asyncio.ensure_future(self._client.gone.wait())
        try:
            while self.status.busy:
                self._changed.clear()
                change = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({change, gone}, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
                if gone.done():
                    raise CommandError(self._last_words())
        finally:
            gone.cancel()

    @asynccontextmanager
    async def _answer_within(self, seconds: float) -> AsyncIterator[None]:
        """Turn what a request can meet into a sentence: silence, or the server's end."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise CommandError(f"the language server did not answer in {seconds:g} s") from None
        except (RuntimeError, OSError) as error:
            await asyncio.sleep(0)  # the reader of its stderr may have the reason
            raise CommandError(self._last_words()) from error

    def _last_words(self) -> str:
        words = "\n".join(self._client.stderr_lines)
        return "the language server ended" + (f"; it wrote:\n{words}" if words else "")

    def _register(self) -> None:
        """Answer and hear what the server sends of itself."""
        # pygls marks what it is given with attributes, which a bound method cannot carry.
        self._client.feature("didChangeStatus")(lambda params: self._status_changed(params))
        self._client.feature(types.PROGRESS)(lambda params: self._progressed(params))
        self._client.feature(types.WINDOW_WORK_DONE_PROGRESS_CREATE)(_ignore)  # the consent
        self._client.feature(types.WINDOW_SHOW_MESSAGE)(_ignore)
        self._client.feature(types.WINDOW_LOG_MESSAGE)(_ignore)

    def _status_changed(self, params: Any) -> None:
        percentage = self.status.percentage if params.busy else None
        self._set(ServerStatus(params.busy, params.kind, params.message, percentage))

    def _progressed(self, params: types.ProgressParams) -> None:
        value = params.value
        known = value.get("percentage") if isinstance(value, dict) else None
        percentage = getattr(value, "percentage", known)
        self._set(replace(self.status, percentage=percentage))

    def _set(self, status: ServerStatus) -> None:
        if status != self.status:
            self.status = status
            self._changed.set()
            self._on_status(status)


class _Client(LanguageClient):
    """pygls' client, which also notices the server's end and keeps the end of its stderr."""

    def __init__(self, name: str, version: str) -> None:
        super().__init__(name, version)
        self.gone = asyncio.Event()
        self.stderr_lines: deque[str] = deque(maxlen=10)

    @property
    def process(self) -> asyncio.subprocess.Process | None:
        """The server's process."""
        return self._server

    def keep_stderr(self) -> None:
        """Read the server's stderr as it comes: a full pipe would stop the server."""
        self._async_tasks.append(asyncio.create_task(self._read_stderr()))

    async def server_exit(self, server: asyncio.subprocess.Process) -> None:
        """Take note of the server's end."""
        self.gone.set()

    async def _read_stderr(self) -> None:
        assert self._server is not None
        stream = self._server.stderr
        assert stream is not None
        while part := await stream.read(1 << 16):
            self.stderr_lines.extend(part.decode("utf-8", "replace").splitlines())


@asynccontextmanager
async def editor_session(
    root: Path,
    on_status: Callable[[ServerStatus], None] = lambda status: None,
    *,
    options: Mapping[str, Any] | None = None,
) -> AsyncIterator[EditorSession]:
    """Run a language server on the workspace folder `root` while the block runs.

    `options` are settings, as an editor sends them in `initializationOptions`.
    """
    session = EditorSession(on_status)
    try:
        await session.start(root, options)
        yield session
    finally:
        await session.stop()


def plain_json(value: Any) -> Any:
    """Return JSON's own types: pygls hands out named tuples where it knows no type."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    return [plain_json(item) for item in value] if isinstance(value, list | tuple) else value


def language_of(path: Path) -> str:
    """Return the language identifier an editor would give a file."""
    return languages.language_of(path.name) or "plaintext"


def _after_cursor(item: types.InlineCompletionItem, before: str) -> str:
    """Return what an item puts after the cursor: its text may repeat what stands before it."""
    insert = item.insert_text
    text = insert if isinstance(insert, str) else insert.value
    if item.range is not None:
        units = before.encode("utf-16-le", "surrogatepass")[2 * item.range.start.character :]
        text = text.removeprefix(units.decode("utf-16-le", "surrogatepass"))
    return text


def _ignore(params: Any) -> None:
    """Answer with null, or hear what has no place to be shown."""


_CAPABILITIES = types.ClientCapabilities(
    general=types.GeneralClientCapabilities(position_encodings=[types.PositionEncodingKind.Utf16]),
    text_document=types.TextDocumentClientCapabilities(
        synchronization=types.TextDocumentSyncClientCapabilities(),
        inline_completion=types.InlineCompletionClientCapabilities(),
    ),
    window=types.WindowClientCapabilities(work_done_progress=True),
)
