"""The status, the progress of a load, and message boxes: what the user sees of the engine."""

import asyncio
from typing import Any

import pytest
from fake_editor import DEADLINE_SECONDS, FakeEditor
from features_support import Start
from lsprotocol import types
from scripted_model import ScriptedModel

pytestmark = pytest.mark.asyncio(loop_scope="session")


def loading(done: int) -> dict[str, Any]:
    progress = {"done": done, "total": 200}
    return {"state": "loading", "model": "big-coder", "progress": progress}


def bars(editor: FakeEditor) -> list[list[object]]:
    """Return what was shown on each progress bar."""
    return [list(reports) for reports in editor.client.progress_reports.values()]


async def until_shown(editor: FakeEditor, kind: type) -> None:
    """Return when a report of `kind` has been shown on the bars."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not any(isinstance(report, kind) for bar in bars(editor) for report in bar):
            await editor.client.wait_for_notification(types.PROGRESS)


async def test_while_the_model_loads_typing_goes_on(start: Start, model: ScriptedModel) -> None:
    editor = await start(ready=False)
    editor.client.progress_reports.clear()
    model.health = loading(50)
    buffer = editor.open("a.py", "total = ‸\n")
    assert await buffer.inline(by_hand=False) == []
    assert await buffer.listed() == []
    status = await editor.until_status(busy=True, message="Loading big-coder")
    assert status["kind"] == "Normal"
    await until_shown(editor, types.WorkDoneProgressBegin)
    model.health = loading(150)
    await until_shown(editor, types.WorkDoneProgressReport)
    model.health = {"state": "ready", "model": "big-coder"}
    await until_shown(editor, types.WorkDoneProgressEnd)
    assert bars(editor) == [
        [
            types.WorkDoneProgressBegin(
                title="Loading big-coder", percentage=25, cancellable=False
            ),
            types.WorkDoneProgressReport(percentage=75),
            types.WorkDoneProgressEnd(message="Loaded"),
        ]
    ]
    await editor.until_status(busy=False, kind="Normal", message="")
    assert editor.client.messages == []


async def test_a_request_by_hand_waits_for_the_model(start: Start, model: ScriptedModel) -> None:
    editor = await start(ready=False)
    model.health = loading(0)
    buffer = editor.open("a.py", "total = ‸\n")
    request = asyncio.create_task(buffer.inline(by_hand=True))
    await editor.until_status(busy=True, message="Loading big-coder")
    model.text = "1"
    model.health = {"state": "ready", "model": "big-coder"}
    (item,) = await request
    assert item.insert_text == "total = 1"


async def test_a_model_that_cannot_be_loaded_is_told_once(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start(ready=False)
    problem = f"/models/next: shard 3 is missing. Download it again. ({model.url})"
    model.health = {"state": "errored", "error": problem}
    buffer = editor.open("a.py", "total = ‸\n")
    for typed in "abc":
        assert await buffer.inline(by_hand=True) == []
        buffer.type(typed)
    status = await editor.until_status(kind="Error")
    assert problem in status["message"]
    assert [m.type for m in editor.client.messages] == [types.MessageType.Error]
    assert problem in editor.client.messages[0].message


async def test_turned_off_says_so(start: Start) -> None:
    editor = await start()
    await editor.configure({"enable": False})
    status = await editor.until_status(kind="Inactive")
    assert "qcn.enable" in status["message"]


async def test_wrong_settings_are_told_once_and_the_rest_holds(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    model.text = "1"
    settings = {"engine": {"url": model.url}, "completion": {"maxToken": 3, "popup": "no"}}
    for _ in range(2):
        await editor.configure(settings)
    assert sorted(message.message for message in editor.client.messages) == [
        "qcn.completion.maxToken: no such setting. Did you mean qcn.completion.maxTokens?",
        'qcn.completion.popup: expected true or false, got "no". Its default is used.',
    ]
    assert await editor.open("a.py", "a = ‸").ghost() == "a = 1‸"
