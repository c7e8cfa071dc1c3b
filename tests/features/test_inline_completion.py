"""`textDocument/inlineCompletion` against the real server, with a model that is told what to say.

A case shows the file with its cursor, `‸`, and the file as it is after accepting the ghost text.
"""

import asyncio
from typing import Any

import pytest
from features_support import Start
from lsprotocol import types
from pygls.exceptions import JsonRpcRequestCancelled
from scripted_model import ScriptedModel

pytestmark = pytest.mark.asyncio(loop_scope="session")

CLIENTS = ["vscode", "neovim"]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("file", "answer", "after"),
    [
        ("def add(a, b):\n    ‸\n", "return a + b", "def add(a, b):\n    return a + b‸\n"),
        ("total = ‸", "sum(items)", "total = sum(items)‸"),
        ("def f():‸\n", "\n    return 1\n", "def f():\n    return 1‸\n"),
        ("print(‸)", "x)\nprint(y)", "print(x‸)"),
        ("s = '🙂é漢'; t = ‸; u = 1", "s + '🙂'", "s = '🙂é漢'; t = s + '🙂'‸; u = 1"),
        ("# 🙂\n\x0cx = ‸\n# \u2028 y\n", "1", "# 🙂\n\x0cx = 1‸\n# \u2028 y\n"),
        ("‸", "import os", "import os‸"),
        ("x = ‸", "```python\n1\n```", "x = 1‸"),
        ("x = ‸", "1<|fim_pad|><|endoftext|>", "x = 1‸"),
    ],
)
async def test_ghost_text_lands_where_the_cursor_is(
    start: Start, model: ScriptedModel, client: str, file: str, answer: str, after: str
) -> None:
    editor = await start(client)
    model.text = answer
    assert await editor.open("a.py", file).ghost() == after


async def test_line_ends_are_the_files_own(start: Start, model: ScriptedModel) -> None:
    editor = await start()
    model.text = "\n    a()\n    b()"
    buffer = editor.open("a.py", "x = 1\r\ndef f():‸\r\n")
    assert await buffer.ghost() == "x = 1\r\ndef f():\r\n    a()\r\n    b()‸\r\n"
    assert "\r" not in model.prompts[-1]


async def test_the_item_begins_with_what_is_typed_already(
    start: Start, model: ScriptedModel
) -> None:
    """LSP4IJ draws the text of the item minus what stands in its range."""
    editor = await start()
    model.text = "sum(items)"
    (item,) = await editor.open("a.py", "    total = ‸\n").inline()
    assert item.insert_text == "    total = sum(items)"
    assert item.filter_text == item.insert_text
    assert item.range == types.Range(types.Position(0, 0), types.Position(0, 12))


@pytest.mark.parametrize(
    ("file", "answer", "drawn"),
    [
        ("    total = ‸\n", "sum(items)", "sum(items)"),
        ("s = '🙂'; n = le‸\n", "n(s)", "n(s)"),
        ("def f():‸\n", "\n    return '🙂'", "\n    return '🙂'"),
    ],
)
async def test_lsp4ij_draws_the_rest_of_an_item_and_inserts_just_that(
    start: Start, model: ScriptedModel, file: str, answer: str, drawn: str
) -> None:
    """It always asks as if by itself, and knows neither commands nor the text to filter by.

    It draws the text without as much of it as already stands in front of the caret.
    """
    editor = await start("lsp4ij")
    model.text = answer
    buffer = editor.open("a.py", file)
    (item,) = await buffer.inline(by_hand=False)
    assert isinstance(item.insert_text, str)  # a snippet would be shown raw
    assert item.command is None
    assert item.range is not None
    before = buffer.text[buffer.offset(item.range.start) : buffer.cursor]
    assert item.insert_text.startswith(before)
    assert item.insert_text[len(before) :] == drawn
    assert item.range.end == buffer.position()


async def test_an_item_selected_in_the_list_is_continued(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    model.text = "(items)"
    buffer = editor.open("a.py", "total = su‸\n")
    span = types.Range(types.Position(0, 8), types.Position(0, 10))
    (item,) = await buffer.inline(selected=types.SelectedCompletionInfo(range=span, text="sum"))
    assert item.insert_text == "sum(items)"
    assert item.range == span
    assert "total = sum<|fim_suffix|>" in model.prompts[-1]


async def test_an_item_that_was_selected_and_is_no_more_has_deleted_nothing(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    model.text = "m(items)"
    buffer = editor.open("a.py", "total = su‸\n")
    span = types.Range(types.Position(0, 8), types.Position(0, 10))
    for selected in (None, types.SelectedCompletionInfo(range=span, text="sum"), None):
        (item,) = await buffer.inline(by_hand=False, selected=selected)
    assert item.insert_text == "total = sum(items)"


async def test_open_files_of_the_workspace_stand_in_front(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    model.text = "1"
    editor.open("lib/b.py", "b = 1\n")
    editor.open(".env", "PASSWORD=hunter2\n", "dotenv")
    editor.open("file:///elsewhere/c.py", "c = 1\n")
    editor.open("d.py", "d = 1\n")
    buffer = editor.open("a.py", "a = ‸\n")
    await buffer.ghost()
    assert model.prompts[-1] == (
        "<|repo_name|>shop\n<|file_sep|>lib/b.py\nb = 1\n<|file_sep|>d.py\nd = 1\n"
        "<|file_sep|>a.py\n<|fim_prefix|>a = <|fim_suffix|>\n<|fim_middle|>"
    )
    # The file looked at last stands last.
    editor.client.protocol.notify(
        "textDocument/didFocus", {"textDocument": {"uri": (editor.root / "lib/b.py").as_uri()}}
    )
    buffer.type("b + ")
    await buffer.ghost()
    assert model.prompts[-1].index("d.py") < model.prompts[-1].index("lib/b.py")


async def test_the_setting_keeps_other_files_out(start: Start, model: ScriptedModel) -> None:
    editor = await start(context={"openFiles": False})
    model.text = "1"
    editor.open("b.py", "b = 1\n")
    await editor.open("a.py", "a = ‸\n").ghost()
    assert "b = 1" not in model.prompts[-1]


# --- When not to offer anything ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("binary.py", "ELF\0‸\n"),
        ("long.py", "x" * 3000 + "‸\n"),
        (".env", "PASSWORD=‸\n"),
        ("key.py", "'''-----BEGIN PRIVATE KEY-----\n‸\n'''\n"),
    ],
)
async def test_some_files_are_not_for_a_model(
    start: Start, model: ScriptedModel, name: str, file: str
) -> None:
    editor = await start()
    model.text = "1"
    assert await editor.open(name, file).inline() == []
    assert model.prompts == []


async def test_inside_a_word_it_is_asked_for_by_hand(start: Start, model: ScriptedModel) -> None:
    editor = await start()
    model.text = "1"
    buffer = editor.open("a.py", "total = ol‸d\n")
    assert await buffer.inline(by_hand=False) == []
    assert model.prompts == []
    assert await buffer.ghost() == "total = ol1‸d\n"
    at_its_end = editor.open("b.py", "total = old‸ + new\n")
    assert await at_its_end.ghost(by_hand=False) == "total = old1‸ + new\n"


@pytest.mark.parametrize(
    "settings",
    [
        {"enable": False},
        {"completion": {"inline": False}},
        {"completion": {"excludedLanguages": ["python"]}},
    ],
)
async def test_the_user_can_turn_it_off(
    start: Start, model: ScriptedModel, settings: dict[str, Any]
) -> None:
    editor = await start("vscode", **settings)
    model.text = "1"
    assert await editor.open("a.py", "a = ‸\n").inline() == []
    assert model.prompts == []


async def test_turned_off_it_asks_for_nothing_more(start: Start, model: ScriptedModel) -> None:
    """Not even before the client has told the server what was changed."""
    editor = await start("vscode")
    model.text = "1"
    buffer = editor.open("a.py", "a = ‸\n")
    editor.change_settings({"enable": False, "engine": {"url": model.url}})
    assert await buffer.inline() == []
    assert model.prompts == []


async def test_turned_off_while_the_model_writes_nothing_is_shown(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start("vscode")
    shown = asyncio.create_task(editor.open("a.py", "a = ‸\n").inline())
    asked = await model.asked.get()
    await editor.configure({"enable": False, "engine": {"url": model.url}})
    asked.answer("1")
    assert await shown == []


async def test_a_client_that_does_not_tell_its_settings_is_waited_for_once(
    start: Start, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = await start("vscode")
    model.text = "1"
    test_ends = asyncio.Event()

    async def tell(_params: types.ConfigurationParams) -> list[Any]:
        await test_ends.wait()
        return []

    monkeypatch.setitem(editor.client.protocol.fm.features, types.WORKSPACE_CONFIGURATION, tell)
    editor.change_settings({"enable": False})
    assert await editor.open("a.py", "a = ‸\n").ghost() == "a = 1‸\n"
    test_ends.set()


async def test_a_document_that_is_not_open_gets_nothing(start: Start, model: ScriptedModel) -> None:
    editor = await start()
    model.text = "1"
    buffer = editor.open("a.py", "a = ‸\n")
    editor.client.text_document_did_close(types.DidCloseTextDocumentParams(buffer.identifier))
    assert await buffer.inline() == []
    assert model.prompts == []


@pytest.mark.parametrize("uri", ["untitled:Untitled-1", "file://", "git:/shop/a.py?%7B%7D"])
async def test_a_buffer_that_is_no_file_is_completed(
    start: Start, model: ScriptedModel, uri: str
) -> None:
    """Unnamed in VS Code and in Neovim; the older side of a diff."""
    editor = await start()
    model.text = "1"
    assert await editor.open(uri, "a = ‸\n").ghost() == "a = 1‸\n"
    assert "shop" not in model.prompts[-1]  # it lies in no folder of the workspace


async def test_in_a_file_of_200_000_lines_the_model_reads_what_is_near(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    model.text = "1"
    lines = [f"x{number} = {number}\n" for number in range(200_000)]
    before, after = "".join(lines[:100_000]), "".join(lines[100_000:])
    buffer = editor.open("long.py", f"{before}here = ‸\n{after}")
    (item,) = await buffer.inline()
    assert item.range is not None
    assert (item.insert_text, item.range.start.line) == ("here = 1", 100_000)
    assert len(model.prompts[-1]) < 100_000
    assert "x99999 = 99999\nhere = <|fim_suffix|>\nx100000" in model.prompts[-1]


async def test_a_position_past_the_text_is_its_end(start: Start, model: ScriptedModel) -> None:
    editor = await start()
    model.text = "1"
    buffer = editor.open("a.py", "a = ‸")
    params = types.InlineCompletionParams(
        types.InlineCompletionContext(types.InlineCompletionTriggerKind.Invoked),
        buffer.identifier,
        types.Position(99, 99),
    )
    answer = await editor.client.text_document_inline_completion_async(params)
    assert isinstance(answer, types.InlineCompletionList)
    assert [item.insert_text for item in answer.items] == ["a = 1"]


@pytest.mark.parametrize("answer", ["", "   \n\n", "a = 0", "<|endoftext|>", "\ny = 2\n"])
async def test_an_answer_with_nothing_new_in_it_is_no_ghost_text(
    start: Start, model: ScriptedModel, answer: str
) -> None:
    editor = await start()
    model.text = answer
    buffer = editor.open("a.py", "a = 0\n‸\ny = 2\n")
    assert await buffer.inline() == []


# --- While typing ------------------------------------------------------------------------------


async def test_typing_what_was_suggested_asks_the_model_once(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    model.text = "sum(items)"
    buffer = editor.open("a.py", "total = ‸\n")
    for typed in "sum(it":
        assert await buffer.ghost(by_hand=False) == "total = sum(items)‸\n"
        buffer.type(typed)
    assert len(model.prompts) == 1
    buffer.type("x")
    await buffer.ghost(by_hand=False)
    assert len(model.prompts) == 2


async def test_an_editor_that_closes_brackets_asks_once_too(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    model.text = "sum(items)"
    buffer = editor.open("a.py", "total = ‸\n")
    assert await buffer.ghost(by_hand=False) == "total = sum(items)‸\n"
    buffer.type("sum()")
    buffer.cursor -= 1
    assert await buffer.ghost(by_hand=False) == "total = sum(items‸)\n"
    buffer.type("it")
    assert await buffer.ghost(by_hand=False) == "total = sum(items‸)\n"
    assert len(model.prompts) == 1


async def test_an_answer_that_the_document_has_outgrown_is_not_given(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    buffer = editor.open("a.py", "total = ‸\n")
    request = asyncio.create_task(buffer.inline())
    asked = await model.asked.get()
    buffer.type("s")
    await editor.caught_up()
    asked.answer("sum(items)")
    assert await request == []
    # Nothing is lost: what was typed is how that answer begins.
    assert await buffer.ghost() == "total = sum(items)‸\n"
    assert len(model.prompts) == 1


async def test_a_newer_request_ends_the_older(start: Start, model: ScriptedModel) -> None:
    editor = await start()
    buffer = editor.open("a.py", "total = ‸\n")
    older = asyncio.create_task(buffer.inline(by_hand=False))
    first = await model.asked.get()
    buffer.type("x")
    newer = asyncio.create_task(buffer.inline(by_hand=False))
    second = await model.asked.get()
    await first.gone.wait()
    assert await older == []
    second.answer(" + y")
    (item,) = await newer
    assert item.insert_text == "total = x + y"


async def test_requests_for_one_place_share_one_answer(start: Start, model: ScriptedModel) -> None:
    editor = await start()
    buffer = editor.open("a.py", "total = ‸\n")
    both = [asyncio.create_task(buffer.inline()) for _ in range(2)]
    asked = await model.asked.get()
    asked.answer("1")
    first, second = await asyncio.gather(*both)
    assert first == second != []
    assert len(model.prompts) == 1


async def test_by_hand_the_engine_is_waited_for_though_others_ask_by_themselves(
    start: Start, model: ScriptedModel
) -> None:
    model.health, model.text = {"state": "loading", "model": "scripted"}, "1"
    editor = await start("neovim", ready=False)  # which cancels no request that is outgrown
    buffer = editor.open("a.py", "total = ‸\n")
    by_itself = asyncio.create_task(buffer.inline(by_hand=False))
    by_hand = asyncio.create_task(buffer.inline())
    assert await by_itself == []
    model.health = {"state": "ready", "model": "scripted"}
    (item,) = await by_hand
    assert item.insert_text == "total = 1"


async def test_a_cancelled_request_is_told_so_and_stops_the_model(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    buffer = editor.open("a.py", "total = ‸\n")
    params = types.InlineCompletionParams(
        types.InlineCompletionContext(types.InlineCompletionTriggerKind.Invoked),
        buffer.identifier,
        buffer.position(),
    )
    waiting = asyncio.wrap_future(
        editor.client.protocol.send_request(
            types.TEXT_DOCUMENT_INLINE_COMPLETION, params, msg_id="to-cancel"
        )
    )
    asked = await model.asked.get()
    editor.client.cancel_request(types.CancelParams("to-cancel"))
    with pytest.raises(JsonRpcRequestCancelled) as refused:
        await waiting
    assert refused.value.code == -32800
    await asked.gone.wait()
    # The place can be asked for again at once.
    model.text = "1"
    assert await buffer.ghost() == "total = 1‸\n"


async def test_what_was_just_deleted_does_not_come_back_by_itself(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    model.text = "sum(items)"
    buffer = editor.open("a.py", "total = sum‸\n")
    await buffer.inline(by_hand=False)
    for _ in "sum":
        buffer.backspace()
        await buffer.inline(by_hand=False)
    assert await buffer.inline(by_hand=False) == []
    # Asked for by hand, it does.
    assert await buffer.ghost() == "total = sum(items)‸\n"


async def test_what_copilots_clients_report_is_taken_without_complaint(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    model.text = "1"
    buffer = editor.open("a.py", "a = ‸\n")
    (item,) = await buffer.inline()
    for method in ("didShowCompletion", "didPartiallyAcceptCompletion"):
        params = {"item": {"insertText": item.insert_text}, "acceptedLength": 1}
        editor.client.protocol.notify(f"textDocument/{method}", params)
    editor.client.protocol.notify("textDocument/didFocus", {"textDocument": None})
    assert await buffer.inline() == [item]
    assert editor.client.messages == []


# --- When the model fails ----------------------------------------------------------------------


async def test_an_answer_that_breaks_off_is_no_error_for_the_editor(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    buffer = editor.open("a.py", "total = ‸\n")
    request = asyncio.create_task(buffer.inline())
    (await model.asked.get()).break_off()
    assert await request == []
    assert (await editor.until_status(kind="Warning"))["message"]
    model.text = "1"
    assert await buffer.ghost() == "total = 1‸\n"
    assert editor.client.messages == []


async def test_a_refusal_is_seen_in_the_status(start: Start, model: ScriptedModel) -> None:
    editor = await start()
    buffer = editor.open("a.py", "total = ‸\n")
    request = asyncio.create_task(buffer.inline())
    (await model.asked.get()).fail(500, "out of memory")
    assert await request == []
    status = await editor.until_status(kind="Warning")
    assert "out of memory" in status["message"]
    model.text = "1"
    assert await buffer.ghost() == "total = 1‸\n"
    await editor.until_status(busy=False, kind="Normal", message="")


async def test_without_an_engine_typing_goes_on_and_the_user_hears_once(start: Start) -> None:
    editor = await start(engine={"url": "http://127.0.0.1:9"})
    buffer = editor.open("a.py", "total = ‸\n")
    for typed in "abc":
        assert await buffer.inline(by_hand=False) == []
        buffer.type(typed)
    status = await editor.until_status(kind="Error")
    assert "127.0.0.1:9" in status["message"]
    assert len([m for m in editor.client.messages if "127.0.0.1:9" in m.message]) <= 1


async def test_the_status_says_busy_while_the_model_works(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    buffer = editor.open("a.py", "total = ‸\n")
    request = asyncio.create_task(buffer.inline())
    asked = await model.asked.get()
    await editor.until_status(busy=True, kind="Normal", message="")
    asked.answer("1")
    await request
    await editor.until_status(busy=False, kind="Normal", message="")
    doubled = [a for a, b in zip(editor.statuses, editor.statuses[1:], strict=False) if a == b]
    assert doubled == [], "a status is sent on change only"
