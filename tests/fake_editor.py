"""An editor without a screen: it keeps documents, sends what an editor sends, applies edits.

Columns are counted here in a way of its own (by encoding the text before the cursor), so that
the server's counting is held against another.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from deadlines import DEADLINE_SECONDS as DEADLINE_SECONDS
from lsprotocol import types
from lsprotocol.converters import get_converter
from pytest_lsp import LanguageClient
from pytest_lsp.client import make_test_lsp_client

CLIENTS = Path(__file__).parent / "lsp" / "clients"
CURSOR = "‸"

_CODECS = {"utf-8": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}
_UNIT = {"utf-8": 1, "utf-16": 2, "utf-32": 4}


class Buffer:
    """An open document with a cursor, as the editor has it."""

    def __init__(self, editor: "FakeEditor", uri: str, marked: str) -> None:
        self.editor = editor
        self.uri = uri
        self.version = 1
        self.cursor = marked.index(CURSOR) if CURSOR in marked else len(marked)
        self.text = marked.replace(CURSOR, "")

    @property
    def marked(self) -> str:
        return self.text[: self.cursor] + CURSOR + self.text[self.cursor :]

    @property
    def identifier(self) -> types.TextDocumentIdentifier:
        return types.TextDocumentIdentifier(self.uri)

    def position(self, offset: int | None = None) -> types.Position:
        before = self.text[: self.cursor if offset is None else offset]
        line = before.rpartition("\n")[2]
        units = len(line.encode(_CODECS[self.editor.encoding])) // _UNIT[self.editor.encoding]
        return types.Position(before.count("\n"), units)

    def offset(self, position: types.Position) -> int:
        lines = self.text.split("\n")
        codec, unit = _CODECS[self.editor.encoding], _UNIT[self.editor.encoding]
        before = lines[position.line].encode(codec)[: position.character * unit].decode(codec)
        return sum(len(line) + 1 for line in lines[: position.line]) + len(before)

    def type(self, text: str) -> None:
        """Insert `text` at the cursor, in one change."""
        self.replace(self.cursor, self.cursor, text)

    def backspace(self) -> None:
        self.replace(self.cursor - 1, self.cursor, "")

    def replace(self, start: int, end: int, text: str) -> None:
        span = types.Range(self.position(start), self.position(end))
        self.version += 1
        self.editor.client.text_document_did_change(
            types.DidChangeTextDocumentParams(
                types.VersionedTextDocumentIdentifier(self.version, self.uri),
                [types.TextDocumentContentChangePartial(range=span, text=text)],
            )
        )
        self.text = self.text[:start] + text + self.text[end:]
        self.cursor = start + len(text)

    def accepted(self, span: types.Range, text: str) -> str:
        """Return the marked text as it would be after accepting an item."""
        start, end = self.offset(span.start), self.offset(span.end)
        return self.text[:start] + text + CURSOR + self.text[end:]

    async def inline(
        self, *, by_hand: bool = True, selected: types.SelectedCompletionInfo | None = None
    ) -> list[types.InlineCompletionItem]:
        """Ask for ghost text at the cursor."""
        kind = types.InlineCompletionTriggerKind.Automatic
        if by_hand:
            kind = types.InlineCompletionTriggerKind.Invoked
        answer = await self.editor.client.text_document_inline_completion_async(
            types.InlineCompletionParams(
                types.InlineCompletionContext(kind, selected), self.identifier, self.position()
            )
        )
        assert isinstance(answer, types.InlineCompletionList)
        return list(answer.items)

    async def ghost(self, *, by_hand: bool = True) -> str | None:
        """Return the marked text after accepting the ghost text, or None when there is none."""
        items = await self.inline(by_hand=by_hand)
        if not items:
            return None
        (item,) = items
        assert isinstance(item.insert_text, str)
        assert item.range is not None
        return self.accepted(item.range, item.insert_text)

    async def actions(
        self,
        *diagnostics: types.Diagnostic,
        only: Sequence[str] | None = None,
        select: str = "",
        automatic: bool = False,
    ) -> list[types.CodeAction | types.Command]:
        """Ask for code actions at the cursor, or for the text `select`."""
        start, end = self.cursor, self.cursor
        if select:
            start = self.text.index(select)
            end = start + len(select)
        kind = types.CodeActionTriggerKind
        context = types.CodeActionContext(
            diagnostics, only, kind.Automatic if automatic else kind.Invoked
        )
        span = types.Range(self.position(start), self.position(end))
        return list(
            await self.editor.client.text_document_code_action_async(
                types.CodeActionParams(self.identifier, span, context)
            )
            or []
        )

    def after(self, edit: types.WorkspaceEdit | None) -> str:
        """Return the text as it would be once an edit of this one document is applied."""
        assert edit is not None
        if edit.document_changes is None:
            assert edit.changes is not None
            ((uri, edits),) = edit.changes.items()
        else:
            (changed,) = edit.document_changes
            assert isinstance(changed, types.TextDocumentEdit)
            uri, edits = changed.text_document.uri, changed.edits  # type: ignore[assignment]
            assert changed.text_document.version == self.version
        assert uri == self.uri
        (only,) = edits  # one step to undo
        start, end = self.offset(only.range.start), self.offset(only.range.end)
        return self.text[:start] + only.new_text + self.text[end:]

    async def listed(self) -> list[types.CompletionItem]:
        """Ask for the list of completions at the cursor."""
        answer = await self.editor.client.text_document_completion_async(
            types.CompletionParams(self.identifier, self.position())
        )
        assert isinstance(answer, types.CompletionList)
        return list(answer.items)


class FakeEditor:
    """One session with the server."""

    def __init__(self, client: LanguageClient, root: Path) -> None:
        self.client = client
        self.root = root
        self.encoding = "utf-16"
        self.opened: set[str] = set()
        self.asked_for_settings = asyncio.Event()
        self.statuses: list[dict[str, Any]] = []
        self.edits: list[types.WorkspaceEdit] = []
        """What the server had this editor apply; it does so unless told to refuse."""
        self.refuses_edits = False
        self.status_changed = asyncio.Condition()
        self.refreshed: asyncio.Queue[str] = asyncio.Queue()
        """URIs of documents whose text this editor is to ask for once more."""

    def open(self, name: str, marked: str, language_id: str = "python") -> Buffer:
        """Open a document; `name` is a path below the root, or a whole URI."""
        uri = name if ":" in name else (self.root / name).as_uri()
        buffer = Buffer(self, uri, marked)
        item = types.TextDocumentItem(uri, language_id, buffer.version, buffer.text)
        self.opened.add(uri)
        self.client.text_document_did_open(types.DidOpenTextDocumentParams(item))
        return buffer

    def close(self, name: str) -> None:
        """Close a document; `name` is a path below the root, or a whole URI."""
        uri = name if ":" in name else (self.root / name).as_uri()
        self.opened.remove(uri)
        identifier = types.TextDocumentIdentifier(uri)
        self.client.text_document_did_close(types.DidCloseTextDocumentParams(identifier))

    def close_all(self) -> None:
        """Close every document."""
        for uri in list(self.opened):
            self.close(uri)

    async def configure(self, settings: dict[str, Any], folder: Path | None = None) -> None:
        """Change the settings, of a workspace folder where one is named; returns when they hold.

        A folder that has none of its own has the general ones.
        """
        self.change_settings(settings, folder)
        workspace = self.client.capabilities and self.client.capabilities.workspace
        async with asyncio.timeout(DEADLINE_SECONDS):
            if workspace and workspace.configuration:
                await self.asked_for_settings.wait()
            await self.caught_up()

    def change_settings(self, settings: dict[str, Any], folder: Path | None = None) -> None:
        """As `configure`, without waiting."""
        scope = None if folder is None else folder.as_uri()
        self.client.set_configuration(settings, section="qcn", scope_uri=scope)
        self.asked_for_settings.clear()
        self.client.workspace_did_change_configuration(
            types.DidChangeConfigurationParams({"qcn": settings})
        )

    async def caught_up(self) -> None:
        """Return once the server has handled everything sent to it so far.

        It takes messages in their order, so it is enough to be answered. Needed where a test
        goes on by a way that is not this connection: a file, the model's answer.
        """
        nowhere = types.CompletionParams(
            types.TextDocumentIdentifier("none:"), types.Position(0, 0)
        )
        await self.client.text_document_completion_async(nowhere)

    async def until_status(self, **expected: object) -> dict[str, Any]:
        """Return the first status, past or coming, that has all of `expected`."""

        def found() -> Iterator[dict[str, Any]]:
            return (s for s in self.statuses if expected.items() <= s.items())

        async with asyncio.timeout(DEADLINE_SECONDS), self.status_changed:
            await self.status_changed.wait_for(lambda: any(True for _ in found()))
        return next(found())


def capabilities(name: str) -> types.ClientCapabilities:
    """Return the capabilities recorded from a real client.

    `without-resolve`: Emacs's, without what eglot 1.9 and others before it could not do.
    """
    if name == "without-resolve":
        emacs = capabilities("emacs-eglot")
        assert emacs.text_document is not None
        assert emacs.text_document.code_action is not None
        emacs.text_document.code_action.resolve_support = None
        emacs.text_document.code_action.data_support = None
        return emacs
    recorded = json.loads((CLIENTS / f"{name}.json").read_text())
    recorded = recorded.get("capabilities", recorded)
    return get_converter().structure(recorded, types.ClientCapabilities)


def _action(raw: dict[str, Any], _type: object) -> types.Command | types.CodeAction:
    """Tell actions that have a command from commands, as lsprotocol 2025.0.0 does not."""
    if isinstance(raw.get("command"), str):
        return get_converter().structure(raw, types.Command)
    return get_converter().structure(raw, types.CodeAction)


def _answer(editor: FakeEditor) -> None:
    """Have the client answer the server's requests as an editor does, and keep what it is told."""
    client = editor.client

    async def changed(params: Any) -> None:
        status = params if isinstance(params, dict) else params._asdict()
        async with editor.status_changed:
            editor.statuses.append(dict(status))
            editor.status_changed.notify_all()

    def configuration(params: types.ConfigurationParams) -> list[Any]:
        editor.asked_for_settings.set()
        return [
            client.get_configuration(section=item.section, scope_uri=item.scope_uri)
            for item in params.items
        ]

    def register_capability(_params: types.RegistrationParams) -> None:
        """Agree to be asked for changes of settings."""

    def apply(params: types.ApplyWorkspaceEditParams) -> types.ApplyWorkspaceEditResult:
        editor.edits.append(params.edit)
        return types.ApplyWorkspaceEditResult(applied=not editor.refuses_edits)

    def refresh(params: types.TextDocumentContentRefreshParams) -> None:
        editor.refreshed.put_nowait(params.uri)

    client.feature(types.WORKSPACE_TEXT_DOCUMENT_CONTENT_REFRESH)(refresh)
    client.protocol._converter.register_structure_hook(types.Command | types.CodeAction, _action)
    client.feature(types.WORKSPACE_APPLY_EDIT)(apply)
    client.feature("didChangeStatus")(changed)
    client.feature(types.CLIENT_REGISTER_CAPABILITY)(register_capability)
    client.protocol.fm.features[types.WORKSPACE_CONFIGURATION] = configuration


@asynccontextmanager
async def fake_editor(
    root: Path,
    client_capabilities: types.ClientCapabilities,
    settings: dict[str, Any],
    *,
    roots: Sequence[Path] | None = None,
) -> AsyncIterator[FakeEditor]:
    """Run the real server and a session with it while the block runs."""
    client = make_test_lsp_client()
    editor = FakeEditor(client, root)
    _answer(editor)
    client.set_configuration(settings, section="qcn")
    await client.start_io(sys.executable, "-m", "qcn_lsp")
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            result = await client.initialize_session(
                types.InitializeParams(
                    capabilities=client_capabilities,
                    root_uri=root.as_uri(),
                    workspace_folders=[
                        types.WorkspaceFolder(folder.as_uri(), folder.name)
                        for folder in (roots or [root])
                    ],
                    initialization_options=settings,
                )
            )
        if encoding := result.capabilities.position_encoding:
            editor.encoding = types.PositionEncodingKind(encoding).value
        yield editor
        async with asyncio.timeout(DEADLINE_SECONDS):
            await client.shutdown_session()
    finally:
        with contextlib.suppress(ProcessLookupError):
            if client._server is not None and client._server.returncode is None:
                client._server.kill()  # the test failed: nobody has told it to leave
            await client.stop()  # type: ignore[no-untyped-call]  # pytest-lsp's is not annotated
