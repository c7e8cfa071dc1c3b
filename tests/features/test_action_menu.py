"""How a provider's offers reach clients that can do more and less."""

from collections.abc import Sequence

import attrs
import pytest
from fake_editor import capabilities
from lsprotocol import types

from qcn_lsp.documents import Document
from qcn_lsp.features.actions.abilities import Abilities
from qcn_lsp.features.actions.menu import code_actions
from qcn_lsp.features.actions.provider import (
    Asked,
    Change,
    ChangedFile,
    NewFile,
    NothingToDo,
    Offer,
    Order,
    Outcome,
)
from qcn_lsp.features.actions.workspace_edit import workspace_edit
from qcn_lsp.scan.finding import TextEdit
from qcn_lsp.server import QcnServer

URI = "file:///shop/a.py"
PARAMS = types.CodeActionParams(
    types.TextDocumentIdentifier(URI),
    types.Range(types.Position(0, 0), types.Position(0, 0)),
    types.CodeActionContext([]),
)


class Given:
    """A provider of one offer."""

    name = "given"
    kinds: tuple[str, ...] = ("quickfix.given",)
    actions = frozenset({"do"})

    def __init__(self, *, known: bool = False, disabled: str = "", shows: bool = False) -> None:
        self.known, self.disabled, self.shows = known, disabled, shows

    async def offers(self, asked: Asked) -> Sequence[Offer]:
        edit = TextEdit(0, 1, "y")
        change = Change("Use y", (ChangedFile(asked.document, (edit,)),), description="Why.")
        return [
            Offer(
                "Use y",
                "quickfix.given",
                "do",
                0,
                1,
                change=change if self.known else None,
                disabled=self.disabled,
                shows=self.shows,
            )
        ]

    async def carry_out(self, order: Order) -> Outcome:
        return NothingToDo("")


def without_literals() -> types.ClientCapabilities:
    """A client from before code actions were more than commands, which applies edits."""
    old = capabilities("minimal")
    return attrs.evolve(old, workspace=types.WorkspaceClientCapabilities(apply_edit=True))


def server_for(client: types.ClientCapabilities) -> QcnServer:
    server = QcnServer()
    server.protocol.client_capabilities = client
    server.documents.open(types.TextDocumentItem(URI, "python", 7, "x = 1\n"))
    return server


@pytest.mark.parametrize(
    ("client", "form"),
    [
        ("vscode", "data"),
        ("neovim", "data"),
        ("neovim-0.12", "data"),
        ("emacs-eglot", "data"),
        ("without-resolve", "command"),
        ("minimal", None),
    ],
)
async def test_what_takes_work_is_resolved_or_a_command(client: str, form: str | None) -> None:
    found = await code_actions(server_for(capabilities(client)), [Given()], PARAMS)
    if form is None:
        assert found == []  # it applies no edits, and takes no actions
        return
    (action,) = found
    assert isinstance(action, types.CodeAction)
    assert [name for name in ("edit", "data", "command") if getattr(action, name)] == [form]


@pytest.mark.parametrize("client", ["vscode", "neovim", "emacs-eglot", "without-resolve"])
async def test_an_edit_that_is_known_goes_along(client: str) -> None:
    found = await code_actions(server_for(capabilities(client)), [Given(known=True)], PARAMS)
    (action,) = found
    assert isinstance(action, types.CodeAction)
    assert action.edit is not None
    assert action.command is action.data is None


async def test_a_client_that_takes_commands_alone_gets_one() -> None:
    server = server_for(without_literals())
    for provider in (Given(), Given(known=True), Given(shows=True)):
        (command,) = await code_actions(server, [provider], PARAMS)
        assert isinstance(command, types.Command)
        assert command.command == "qcn.action"
    assert await code_actions(server, [Given(disabled="no")], PARAMS) == []


async def test_what_shows_something_is_a_command_everywhere() -> None:
    for client in ("vscode", "emacs-eglot", "without-resolve"):
        server = server_for(capabilities(client))
        (action,) = await code_actions(server, [Given(shows=True)], PARAMS)
        assert isinstance(action, types.CodeAction)
        assert action.command is not None
        assert action.data is None


CHANGE = Change(
    "Use y",
    (ChangedFile(Document(URI, "python", 7, "é🙂x = 1\n"), (TextEdit(2, 3, "y"),)),),
    description="Why.",
    needs_confirmation=True,
)


@pytest.mark.parametrize(("encoding", "column"), [("utf-8", 6), ("utf-16", 3), ("utf-32", 2)])
def test_columns_are_the_clients(encoding: str, column: int) -> None:
    client = Abilities.of(capabilities("emacs-eglot"))
    edit = workspace_edit(CHANGE, client, types.PositionEncodingKind(encoding))
    assert edit.document_changes is not None
    (changed,) = edit.document_changes
    assert isinstance(changed, types.TextDocumentEdit)
    assert changed.text_document.version == 7
    assert changed.edits[0].range.start == types.Position(0, column)


def test_annotations_say_what_an_edit_is_and_why() -> None:
    client = Abilities.of(capabilities("vscode"))
    edit = workspace_edit(CHANGE, client, types.PositionEncodingKind.Utf16)
    assert edit.change_annotations == {
        "qcn": types.ChangeAnnotation("Use y", needs_confirmation=True, description="Why.")
    }
    assert edit.document_changes is not None
    (changed,) = edit.document_changes
    assert isinstance(changed, types.TextDocumentEdit)
    (text,) = changed.edits
    assert isinstance(text, types.AnnotatedTextEdit)
    assert text.annotation_id == "qcn"


def test_a_client_that_knows_no_versions_gets_plain_edits() -> None:
    edit = workspace_edit(CHANGE, Abilities(), types.PositionEncodingKind.Utf16)
    assert edit.document_changes is None
    assert edit.change_annotations is None
    assert edit.changes is not None
    assert [text.new_text for text in edit.changes[URI]] == ["y"]


def test_a_new_file_overwrites_none() -> None:
    change = Change("A file", new_files=(NewFile("file:///shop/b.py", "x\n"),))
    client = Abilities.of(capabilities("neovim"))
    edit = workspace_edit(change, client, types.PositionEncodingKind.Utf8)
    assert edit.document_changes is not None
    create, write = edit.document_changes
    assert isinstance(create, types.CreateFile)
    assert create.options == types.CreateFileOptions(overwrite=False, ignore_if_exists=False)
    assert isinstance(write, types.TextDocumentEdit)
