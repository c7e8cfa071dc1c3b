"""The server with today's clients, by the capabilities they really send (`clients/*.json`)."""

from collections.abc import Callable

import pytest
from lsp_wire import PRODUCT, notification, recorded, request, session
from lsprotocol import types
from lsprotocol.converters import get_converter
from pytest_lsp.client import make_test_lsp_client

ENCODINGS = {
    "vscode": "utf-16",
    "neovim": "utf-8",
    "neovim-0.12": "utf-8",
    "emacs-eglot": "utf-32",
    "lsp4ij": "utf-16",
    "minimal": "utf-16",
}
URI = "file:///home/me/emoji.py"
TEXT = 'greeting = "👋🏽"\r\nname = 1'
COLUMN = {"utf-8": len('greeting = "👋🏽'.encode()), "utf-16": 16, "utf-32": 14}


@pytest.mark.parametrize("name", ENCODINGS)
async def test_a_session(name: str) -> None:
    """Initialize, open, edit behind an emoji, ask, close, leave; pytest-lsp checks each message."""
    client = make_test_lsp_client()
    agree: Callable[[types.RegistrationParams], None] = lambda _params: None  # noqa: E731
    client.feature(types.CLIENT_REGISTER_CAPABILITY)(agree)
    who = recorded(name)
    await client.start_io(*PRODUCT)
    result = await client.initialize_session(
        types.InitializeParams(
            capabilities=get_converter().structure(who["capabilities"], types.ClientCapabilities),
            client_info=who["clientInfo"] and types.ClientInfo(**who["clientInfo"]),
            workspace_folders=[types.WorkspaceFolder(uri="file:///work", name="work")],
        )
    )
    assert result.capabilities.position_encoding == ENCODINGS[name]
    commands = result.capabilities.execute_command_provider
    assert commands is not None
    assert list(commands.commands) == ["qcn.action", "qcn.refactor"]
    item = types.TextDocumentItem(URI, "python", 1, TEXT)
    client.text_document_did_open(types.DidOpenTextDocumentParams(item))
    place = types.Position(0, COLUMN[ENCODINGS[name]])
    change = types.TextDocumentContentChangePartial(range=types.Range(place, place), text="!")
    version = types.VersionedTextDocumentIdentifier(2, URI)
    client.text_document_did_change(types.DidChangeTextDocumentParams(version, [change]))
    where = types.TextDocumentIdentifier(URI)
    client.text_document_did_close(types.DidCloseTextDocumentParams(where))
    # No document: an answer at once, and none from a model.
    listed = await client.text_document_completion_async(types.CompletionParams(where, place))
    assert isinstance(listed, types.CompletionList)
    assert not listed.items
    await client.shutdown_session()


@pytest.mark.parametrize("name", ENCODINGS)
def test_columns_are_counted_as_the_client_counts_them(name: str) -> None:
    encoding = ENCODINGS[name]
    place = {"line": 0, "character": COLUMN[encoding]}
    changes = [{"range": {"start": place, "end": place}, "text": "!"}]
    opened = {"uri": URI, "languageId": "python", "version": 1, "text": TEXT}
    with session(name) as server:
        server.send(
            notification("textDocument/didOpen", {"textDocument": opened}),
            notification(
                "textDocument/didChange",
                {"textDocument": {"uri": URI, "version": 2}, "contentChanges": changes},
            ),
        )
        assert server.ask(1, "test/text", {"uri": URI}) == TEXT.replace("👋🏽", "👋🏽!")


@pytest.mark.parametrize("name", ENCODINGS)
def test_what_the_server_says_it_can_do(name: str) -> None:
    with session(name) as server:
        result = server.answer("initialize")["result"]
        assert result["serverInfo"]["name"] == "qcn-lsp"
        sync = result["capabilities"]["textDocumentSync"]
        for option in ("willSave", "willSaveWaitUntil"):  # said only to clients that ask
            assert not sync.pop(option, False)
        assert result["capabilities"] == {
            "positionEncoding": ENCODINGS[name],
            "textDocumentSync": {"openClose": True, "change": 2, "save": False},
            "inlineCompletionProvider": {},
            "diagnosticProvider": {
                "identifier": "qcn",
                "interFileDependencies": False,
                "workspaceDiagnostics": False,
            },
            "completionProvider": {"triggerCharacters": ["."]},
            "codeActionProvider": {
                "codeActionKinds": [
                    "quickfix.security.qcn",
                    "quickfix.qcn",
                    "refactor.rewrite.complete.qcn",
                    "refactor.rewrite.document.qcn",
                    "refactor.test.qcn",
                    "explain.qcn",
                    "review.security.qcn",
                ],
                "resolveProvider": True,
            },
            "executeCommandProvider": {"commands": ["qcn.action", "qcn.refactor", "test.wait"]},
            "workspace": {
                "workspaceFolders": {"supported": True, "changeNotifications": True},
                "fileOperations": {},
                "textDocumentContent": {"schemes": ["qcn"]},
            },
        }


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, "utf-16"),
        ([], "utf-16"),
        (["utf-8", "utf-16"], "utf-8"),
        (["utf-32", "utf-8", "utf-16"], "utf-32"),
        (["utf-16", "utf-8"], "utf-16"),
        (["utf-64", "utf-8"], "utf-8"),
        (["utf-64"], "utf-16"),
    ],
)
def test_the_client_chooses_the_encoding(offered: list[str] | None, chosen: str) -> None:
    general = {} if offered is None else {"positionEncodings": offered}
    with session(capabilities={"general": general}) as server:
        answer = server.answer("initialize")["result"]
        assert answer["capabilities"]["positionEncoding"] == chosen


def test_handlers_see_the_document_as_their_request_did() -> None:
    """A change right behind a request comes too late for it."""
    opened = {"uri": URI, "languageId": "python", "version": 1, "text": "before"}
    with session() as server:
        server.send(notification("textDocument/didOpen", {"textDocument": opened}))
        for version in range(2, 50):
            change = {
                "textDocument": {"uri": URI, "version": version},
                "contentChanges": [{"text": f"after {version}"}],
            }
            server.send(
                request(version, "test/textAfterWaiting", {"uri": URI}),
                notification("textDocument/didChange", change),
            )
        seen = [server.answer(version)["result"] for version in range(2, 50)]
        assert seen == [["before"]] + [[f"after {version}"] for version in range(2, 49)]
