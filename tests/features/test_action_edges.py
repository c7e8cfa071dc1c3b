"""Code actions on documents that are unusual, or that change while they are carried out."""

import asyncio
from typing import Any

import pytest
from deadlines import DEADLINE_SECONDS
from fake_editor import Buffer, FakeEditor
from features_support import Start
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from scripted_model import Asked, ScriptedModel

from qcn_lsp.features.actions.prompts import AFTER, BEFORE

pytestmark = pytest.mark.asyncio(loop_scope="session")

STUB = "def price(item):\n    ‸pass\n"
WRITTEN = "def price(item):\n    return item.price"
ENCODINGS = ["vscode", "neovim", "emacs-eglot"]  # utf-16, utf-8, utf-32


def fenced(code: str) -> str:
    return f"```\n{code}\n```\n"


async def asked(model: ScriptedModel) -> Asked:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await model.asked.get()


async def chosen(buffer: Buffer, title: str) -> types.CodeAction:
    """Return the one action whose title begins so."""
    (action,) = [one for one in await buffer.actions() if one.title.startswith(title)]
    assert isinstance(action, types.CodeAction)
    return action


async def resolved(editor: FakeEditor, action: types.CodeAction) -> types.CodeAction:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await editor.client.code_action_resolve_async(action)


async def refactored(editor: FakeEditor, buffer: Buffer, start: int, end: int) -> None:
    span = types.Range(buffer.position(start), buffer.position(end))
    place = {
        name: {"line": at.line, "character": at.character}
        for name, at in (("start", span.start), ("end", span.end))
    }
    argument: Any = {"uri": buffer.uri, "range": place, "instruction": "shorter"}
    async with asyncio.timeout(DEADLINE_SECONDS):
        await editor.client.workspace_execute_command_async(
            types.ExecuteCommandParams("qcn.refactor", [argument])
        )


# --- What changes under an action -----------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_document_that_was_opened_again_with_another_text_is_not_edited(
    start: Start, model: ScriptedModel, when: str
) -> None:
    """Its version begins at 1 once more."""
    editor = await start("vscode")
    buffer = editor.open("shop.py", STUB)
    action = await chosen(buffer, "Complete")
    request = asyncio.ensure_future(resolved(editor, action)) if when == "meanwhile" else None
    question = await asked(model) if request else None
    editor.close("shop.py")
    editor.open("shop.py", "import os\n\n\n" + STUB)
    await editor.caught_up()
    if question is not None:
        question.answer(fenced(WRITTEN))
    with pytest.raises(JsonRpcException) as refusal:
        await (request or resolved(editor, action))
    assert refusal.value.code == types.LSPErrorCodes.ContentModified


@pytest.mark.parametrize("client", ["vscode", "emacs-eglot"])
@pytest.mark.parametrize("what", ["typed in", "written", "opened", "gone"])
async def test_a_test_file_that_changes_meanwhile_is_not_edited(
    start: Start, model: ScriptedModel, client: str, what: str
) -> None:
    editor = await start(client)
    path = editor.root / "test_late.py"
    path.write_text("import late\n")
    tests = editor.open("test_late.py", path.read_text()) if what == "typed in" else None
    action = await chosen(editor.open("late.py", "def f(a):\n    return a‸\n"), "Write a test")
    request = asyncio.ensure_future(resolved(editor, action))
    question = await asked(model)
    if tests is not None:
        tests.type("x = 1\n")
    elif what == "written":
        path.write_text("import late as it_is\n")
    elif what == "opened":
        editor.open("test_late.py", "import late\n\nx = 1\n")
    else:
        path.unlink()
    await editor.caught_up()
    question.answer(fenced("def test_f():\n    assert late.f(1) == 1"))
    with pytest.raises(JsonRpcException) as refusal:
        await request
    assert refusal.value.code == types.LSPErrorCodes.ContentModified
    path.unlink(missing_ok=True)


async def test_the_model_being_changed_ends_an_action_with_a_reason(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start("vscode")
    action = await chosen(editor.open("shop.py", STUB), "Complete")
    request = asyncio.ensure_future(resolved(editor, action))
    question = await asked(model)
    await editor.configure({"engine": {"url": "http://127.0.0.1:1"}})
    async with asyncio.timeout(DEADLINE_SECONDS):
        await question.gone.wait()
    with pytest.raises(JsonRpcException) as refusal:
        await request
    assert refusal.value.code == types.LSPErrorCodes.RequestFailed
    assert [message.message for message in editor.client.messages][-1] == refusal.value.message


async def test_a_workspace_folder_that_goes_leaves_a_document_without_one(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start("neovim-0.12")
    folder = types.WorkspaceFolder(editor.root.as_uri(), "shop")

    def folders(*, gone: bool) -> None:
        event = types.WorkspaceFoldersChangeEvent(*([], [folder])[:: 1 if gone else -1])
        params = types.DidChangeWorkspaceFoldersParams(event)
        editor.client.workspace_did_change_workspace_folders(params)

    buffer = editor.open("shop.py", STUB)
    menu = {title: await chosen(buffer, title) for title in ("Complete", "Write a test")}
    folders(gone=True)
    try:
        model.text = fenced(WRITTEN)
        action = await resolved(editor, menu["Complete"])
        assert buffer.after(action.edit) == WRITTEN + "\n"
        with pytest.raises(JsonRpcException, match="no place known for tests"):
            await resolved(editor, menu["Write a test"])
    finally:
        folders(gone=False)
        await editor.caught_up()


# --- What documents there are ---------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["untitled:Untitled-1", "vscode-notebook-cell:/w/a.ipynb#W0sZQ%3D"])
async def test_a_text_that_is_no_file_has_the_functions_of_its_language(
    start: Start, model: ScriptedModel, uri: str
) -> None:
    editor = await start("vscode")
    model.text = fenced(WRITTEN)
    buffer = editor.open(uri, STUB)
    action = await resolved(editor, await chosen(buffer, "Complete"))
    assert buffer.after(action.edit) == WRITTEN + "\n"
    titles = [one.title for one in await buffer.actions()]
    assert not [title for title in titles if title.startswith("Write a test")]


@pytest.mark.parametrize("text", ["", "\n", "\ufeff", "   "])
async def test_an_empty_text_has_no_actions_and_nothing_to_refactor(
    start: Start, model: ScriptedModel, text: str
) -> None:
    editor = await start("vscode")
    buffer = editor.open("empty.py", text)
    assert await buffer.actions() == []
    with pytest.raises(JsonRpcException, match="no code here"):
        await refactored(editor, buffer, 0, len(text))
    assert model.prompts == []


@pytest.mark.parametrize("client", ENCODINGS)
@pytest.mark.parametrize(
    ("before", "answer", "after"),
    [
        ("\ufeffdef f():\r\n    ‸pass\r\n", "def f():\n    return 1",
         "\ufeffdef f():\r\n    return 1\r\n"),
        ("x = '🙂'; y = '🙂'\n\ndef f(ä='🙂'):\n\t‸pass", "def f(ä='🙂'):\n\treturn '🙂'",
         "x = '🙂'; y = '🙂'\n\ndef f(ä='🙂'):\n\treturn '🙂'"),
        ("def f(): ‸pass\n", "def f(): return '🙂'", "def f(): return '🙂'\n"),
        ("a = 1\x0cb = 2\n\x0c\ndef f():\n    ‸pass\n", "def f():\n    return 1",
         "a = 1\x0cb = 2\n\x0c\ndef f():\n    return 1\n"),
    ],
    ids=["byte order mark", "wide characters and tabs", "one line", "form feeds"],
)  # fmt: skip
async def test_only_the_function_changes(
    start: Start, model: ScriptedModel, client: str, before: str, answer: str, after: str
) -> None:
    editor = await start(client)
    model.text = fenced(answer)
    buffer = editor.open("a.py", before)
    action = await resolved(editor, await chosen(buffer, "Complete"))
    assert buffer.after(action.edit) == after


@pytest.mark.parametrize("client", ENCODINGS)
async def test_a_selection_inside_a_very_long_line_is_refused(
    start: Start, model: ScriptedModel, client: str
) -> None:
    """What would have to be written anew is the whole line."""
    editor = await start(client)
    line = "x = [" + "'🙂', " * 10_000 + "]\n"
    buffer = editor.open("long.py", line)
    with pytest.raises(JsonRpcException, match="too long"):
        await refactored(editor, buffer, 20_000, 20_010)
    assert model.prompts == []


async def test_of_very_long_lines_around_a_part_the_model_sees_what_is_near(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start("vscode")
    model.text = fenced("function f() { return 1 }")
    far, near = "x=1;" * 10_000, "y=2;"
    text = f"{far}{near}\nfunction f() {{‸}}\n{near}{far}"
    buffer = editor.open("long.js", text, "javascript")
    action = await resolved(editor, await chosen(buffer, "Complete"))
    assert buffer.after(action.edit) == text.replace("{‸}", "{ return 1 }")
    (prompt,) = model.prompts
    assert f"{near}\nfunction f() {{}}\n{near}" in prompt
    assert len(prompt) < BEFORE + AFTER + 5_000
