"""Reviewing a function on demand, with a chat model that answers as the test tells it."""

import asyncio
import json
from typing import Any

import pytest
from deadlines import DEADLINE_SECONDS
from fake_editor import Buffer, FakeEditor
from features_support import Start
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from scripted_model import ScriptedModel

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = "x = 1\n\n\ndef pay(user, amount):\n    ‸user.balance -= amount\n    return eval(user)\n"
QUOTED = "user.balance -= amount"
ITEM = {"code": QUOTED, "cwe": 840, "message": "A negative amount adds money."}


def fenced(items: Any) -> str:
    return f"I have looked.\n\n```json\n{json.dumps(items)}\n```\n"


async def review(buffer: Buffer, model: ScriptedModel, *answers: str) -> str:
    """Choose the review, have the model answer so, and return what the user is told."""
    [action] = [one for one in await buffer.actions() if one.title.startswith("Review pay")]
    assert isinstance(action, types.CodeAction)
    editor = buffer.editor
    assert action.command is not None
    running = asyncio.ensure_future(
        editor.client.workspace_execute_command_async(
            types.ExecuteCommandParams(action.command.command, action.command.arguments)
        )
    )
    async with asyncio.timeout(DEADLINE_SECONDS):
        for answer in answers:
            asked = await model.asked.get()
            assert "def pay(user, amount)" in asked.prompt
            asked.answer(answer)
        await running
    return editor.client.messages[-1].message


async def underlined(buffer: Buffer) -> dict[str, types.Diagnostic]:
    """Return the diagnostics by the text that they stand at."""
    report = await buffer.editor.client.text_document_diagnostic_async(
        types.DocumentDiagnosticParams(buffer.identifier)
    )
    assert isinstance(report, types.RelatedFullDocumentDiagnosticReport)

    def at(span: types.Range) -> str:
        return buffer.text[buffer.offset(span.start) : buffer.offset(span.end)]

    return {at(one.range): one for one in report.items}


async def opened(start: Start, model: ScriptedModel) -> tuple[FakeEditor, Buffer]:
    editor = await start("vscode")
    return editor, editor.open("pay.py", TEXT)


async def test_what_the_model_finds_is_underlined_as_unconfirmed_until_it_changes(
    start: Start, model: ScriptedModel
) -> None:
    _, buffer = await opened(start, model)
    told = await review(buffer, model, fenced([ITEM]))
    assert told == "The model tells of one possible weakness in pay, none confirmed."
    found = await underlined(buffer)
    assert set(found) == {QUOTED, "eval(user)"}
    assert found[QUOTED].severity is types.DiagnosticSeverity.Information
    assert found[QUOTED].code == "review.model"
    assert "Unconfirmed: A negative amount adds money." in str(found[QUOTED].message)
    buffer.replace(0, 0, "# above\n")
    assert set(await underlined(buffer)) == {QUOTED, "eval(user)"}
    buffer.replace(buffer.text.index("amount)"), buffer.text.index("amount)"), "an_")
    assert set(await underlined(buffer)) == {"eval(user)"}


async def test_an_answer_out_of_form_is_asked_for_once_more_and_then_told(
    start: Start, model: ScriptedModel
) -> None:
    _, buffer = await opened(start, model)
    told = await review(buffer, model, "It is fine.", fenced([]))
    assert told == "The model finds no weakness in pay. It may be wrong."
    elsewhere = fenced([{**ITEM, "code": "os.system(x)"}])
    with pytest.raises(JsonRpcException, match="A small model is seldom able to do this"):
        await review(buffer, model, elsewhere, elsewhere)
    assert set(await underlined(buffer)) == {"eval(user)"}


async def test_the_embedded_model_is_not_asked(start: Start, model: ScriptedModel) -> None:
    editor = await start("vscode", ready=False, engine={})
    buffer = editor.open("pay.py", TEXT)
    [action] = [one for one in await buffer.actions() if one.title.startswith("Review pay")]
    assert isinstance(action, types.CodeAction)
    assert action.disabled is not None
    assert "cannot chat" in action.disabled.reason
    assert model.prompts == []
