"""`textDocument/completion`: the suggestion in the editor's list."""

import pytest
from features_support import Start
from lsprotocol import types
from scripted_model import ScriptedModel

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Editors without ghost text; what they can do with a list was recorded from them.
LIST_ONLY = ["neovim", "emacs-eglot", "minimal"]


@pytest.mark.parametrize("client", LIST_ONLY)
@pytest.mark.parametrize(
    ("file", "answer", "label", "after"),
    [
        ("x = os.pa‸\n", "th.join(a)", "path.join(a)", "x = os.path.join(a)‸\n"),
        ("é = '🙂' + st‸ # 漢\n", "r(a)", "str(a)", "é = '🙂' + str(a)‸ # 漢\n"),
        ("print(‸)", "x)", "x", "print(x‸)"),
        ("return ‸", "  a  +\tb", "a + b", "return a  +\tb‸"),
    ],
)
async def test_the_entry_replaces_the_word_that_was_begun(
    start: Start, model: ScriptedModel, client: str, file: str, answer: str, label: str, after: str
) -> None:
    editor = await start(client)
    model.text = answer
    buffer = editor.open("a.py", file)
    (item,) = await buffer.listed()
    assert item.label == label
    assert isinstance(item.text_edit, types.TextEdit)
    assert buffer.accepted(item.text_edit.range, item.text_edit.new_text) == after
    assert item.text_edit.range.start.line == item.text_edit.range.end.line
    assert item.filter_text is not None
    word = buffer.text[: buffer.cursor].split("(")[-1].split(" ")[-1].split(".")[-1]
    assert item.filter_text.startswith(word)


async def test_more_than_a_line_is_a_second_entry(start: Start, model: ScriptedModel) -> None:
    editor = await start("neovim")
    model.text = "a:\n        b()"
    buffer = editor.open("a.py", "def f():\n    if ‸\n")
    line, whole = await buffer.listed()
    assert (line.label, whole.label) == ("a:", "a:…")
    assert isinstance(whole.text_edit, types.TextEdit)
    assert buffer.accepted(whole.text_edit.range, whole.text_edit.new_text) == (
        "def f():\n    if a:\n        b()‸\n"
    )
    assert line.sort_text is not None
    assert whole.sort_text is not None
    assert line.sort_text < whole.sort_text


async def test_only_the_lines_below_where_nothing_is_left_of_this_one(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start("neovim")
    model.text = "\n    return 1"
    (item,) = await editor.open("a.py", "def f():‸\n").listed()
    assert item.label == "return 1"


async def test_the_whole_text_can_be_read_before_it_is_taken(
    start: Start, model: ScriptedModel
) -> None:
    text = "a = 1\n```\nb = 2"
    editor = await start("neovim")
    model.text = text
    item, _ = await editor.open("README.md", "‸", "markdown").listed()
    # The fence is longer than the one in the text, which so cannot end it.
    assert item.documentation == types.MarkupContent(
        types.MarkupKind.Markdown, "````markdown\na = 1\n```\nb = 2\n````"
    )
    editor = await start("minimal")
    model.text = text
    item, _ = await editor.open("README.md", "‸", "markdown").listed()
    assert item.documentation == text


async def test_other_servers_entries_come_first(start: Start, model: ScriptedModel) -> None:
    editor = await start("neovim")
    model.text = "1"
    (item,) = await editor.open("a.py", "x = ‸").listed()
    assert item.sort_text is not None
    assert item.sort_text > "zzzz"
    assert item.sort_text > "ÿ"
    assert not item.preselect
    assert item.kind == types.CompletionItemKind.Text


async def test_the_list_is_asked_for_again_while_typing(start: Start, model: ScriptedModel) -> None:
    editor = await start("neovim")
    model.text = "sum(items)"
    buffer = editor.open("a.py", "total = ‸")
    for typed in "sum(":
        (item,) = await buffer.listed()
        buffer.type(typed)
        assert isinstance(item.text_edit, types.TextEdit)
        assert item.text_edit.new_text.endswith("sum(items)"[-5:])
    assert len(model.prompts) == 1


async def test_where_there_is_ghost_text_the_list_does_not_ask_the_model(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start("vscode")
    model.text = "sum(items)"
    buffer = editor.open("a.py", "total = ‸\n")
    assert await buffer.listed() == []
    assert model.prompts == []
    await buffer.ghost()
    (item,) = await buffer.listed()
    assert item.label == "sum(items)"
    assert len(model.prompts) == 1
    # With ghost text turned off, the list is what there is.
    await editor.configure({"engine": {"url": model.url}, "completion": {"inline": False}})
    other = editor.open("b.py", "count = ‸\n")
    (item,) = await other.listed()
    assert len(model.prompts) == 2


async def test_the_user_can_turn_it_off(start: Start, model: ScriptedModel) -> None:
    editor = await start("neovim", completion={"popup": False})
    model.text = "1"
    assert await editor.open("a.py", "a = ‸\n").listed() == []
    assert model.prompts == []


async def test_a_document_that_is_not_open_has_an_empty_list(start: Start) -> None:
    editor = await start("neovim")
    answer = await editor.client.text_document_completion_async(
        types.CompletionParams(types.TextDocumentIdentifier("untitled:x"), types.Position(0, 0))
    )
    assert isinstance(answer, types.CompletionList)
    assert not answer.items
