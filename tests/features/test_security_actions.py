"""Fixes of findings in the menu, by the real server and scanner, with a scripted model."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from deadlines import DEADLINE_SECONDS
from fake_editor import Buffer, capabilities
from features_support import Start
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from scripted_model import ScriptedModel

from qcn_lsp.documents import Document
from qcn_lsp.features.actions.provider import Asked
from qcn_lsp.features.actions.security import SecurityFixes
from qcn_lsp.scan.finding import Finding
from qcn_lsp.scan.open_documents import DocumentFindings
from qcn_lsp.server import QcnServer
from qcn_lsp.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="session")

KIND = "quickfix.security.qcn"
YAML = "import yaml\n\n\ndef load(text):\n    return yaml.load(text)\n"
SAFE = YAML.replace("yaml.load", "yaml.safe_load")
SHELL = (
    'import subprocess\n\n\ndef run(name):\n    return subprocess.run("ls " + name, shell=True)\n'
)
GOOD = 'def run(name):\n    return subprocess.run(["ls", name])\n'


async def offered(
    buffer: Buffer, select: str, *, automatic: bool = False
) -> list[types.CodeAction]:
    found = await buffer.actions(only=["quickfix"], select=select, automatic=automatic)
    actions = [one for one in found if isinstance(one, types.CodeAction) and one.kind == KIND]
    assert not any(one.is_preferred for one in actions)
    return actions


async def test_a_rules_own_fix_is_offered_with_what_it_has_shown(start: Start) -> None:
    editor = await start()
    buffer = editor.open("load.py", YAML)
    [action] = await offered(buffer, "yaml.load", automatic=True)
    assert action.title.startswith("Fix CWE-502: ")
    assert action.title.endswith("(the finding is gone; tests not run)")
    assert action.edit is None
    assert not action.tags
    resolved = await editor.client.code_action_resolve_async(action)
    assert buffer.after(resolved.edit) == SAFE
    assert resolved.edit is not None
    [annotation] = (resolved.edit.change_annotations or {}).values()
    assert annotation.description is not None
    assert "Not checked" in annotation.description
    assert "the project's tests: none were found" in annotation.description.replace("\\", "")


async def test_a_rules_own_fix_is_judged_once_though_questions_are_dropped() -> None:
    """As VS Code drops that behind its menu when it asks by itself, after a move of the cursor."""
    scanned: list[str] = []
    compared = asyncio.Event()

    class Counting(DocumentFindings):
        async def in_text(self, text: str, language: str) -> tuple[Finding, ...]:
            scanned.append(text)
            compared.set()
            return await super().in_text(text, language)

    findings = Counting()
    server = SimpleNamespace(
        settings_for=lambda uri: Settings(),
        client_capabilities=capabilities("vscode"),
        workspace_roots=[],
        findings=findings,
    )
    fixes = SecurityFixes(cast("QcnServer", server))
    document = Document("file:///shop/load.py", "python", 1, YAML)
    place = YAML.index("yaml.load")
    asked = Asked(document, place, place, (), automatic=True)
    try:
        await findings.of(document)
        compared.clear()
        dropped = asyncio.ensure_future(fixes.offers(asked))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await compared.wait()
        dropped.cancel()
        [offer] = await fixes.offers(asked)
        assert "the finding is gone" in offer.title
        once = len(scanned)
        assert len(set(scanned)) == once - 1  # the text as it is: to find it, and to compare
        [again] = await fixes.offers(asked)
        assert again.title == offer.title
        assert len(scanned) == once
        newer = replace(document, version=2, text=f"# newer\n{YAML}")
        [other] = await fixes.offers(replace(asked, document=newer, end=len(newer.text)))
        assert len(scanned) > once
        assert other.start > offer.start
    finally:
        await findings.close()


async def test_a_client_that_does_not_resolve_gets_the_rules_edit_at_once(start: Start) -> None:
    editor = await start("without-resolve")
    buffer = editor.open("load.py", YAML)
    [action] = await offered(buffer, "yaml.load")
    assert buffer.after(action.edit) == SAFE
    assert not await offered(editor.open("run.py", SHELL), "subprocess.run(")


async def test_no_fix_is_offered_elsewhere_or_for_no_finding(start: Start) -> None:
    editor = await start()
    assert not await offered(editor.open("load.py", YAML), "def load")
    assert not await offered(editor.open("safe.py", SAFE), "safe_load")


async def test_no_fix_is_offered_in_fix_all(start: Start) -> None:
    editor = await start()
    buffer = editor.open("load.py", YAML)
    assert not await buffer.actions(only=["source.fixAll"], select="yaml.load")


async def test_a_model_is_asked_when_its_fix_is_chosen(start: Start, model: ScriptedModel) -> None:
    editor = await start()
    buffer = editor.open("run.py", SHELL)
    action, proving = await offered(buffer, "subprocess.run(")
    assert model.prompts == []
    assert list(action.tags or ()) == [types.CodeActionTag.LlmGenerated]
    assert "when chosen" in action.title
    assert "exploit test" in proving.title
    model.text = f"```python\n{GOOD}```"
    resolved = await editor.client.code_action_resolve_async(action)
    assert buffer.after(resolved.edit) == SHELL[: SHELL.index("def run")] + GOOD
    assert len(model.prompts) == 1


async def test_where_no_fix_is_acceptable_the_user_is_told_why(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    buffer = editor.open("run.py", SHELL)
    action = (await offered(buffer, "subprocess.run("))[0]
    model.text = f"```python\n{SHELL[SHELL.index('def') :].rstrip()}  # nosec\n```"
    resolved = await editor.client.code_action_resolve_async(action)
    assert resolved.edit is None
    [message] = [one.message for one in editor.client.messages]
    assert message.startswith("No acceptable fix found.")
    assert "It silences a scanner" in message


async def test_a_fix_of_a_text_that_changed_meanwhile_is_refused(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    buffer = editor.open("run.py", SHELL)
    action = (await offered(buffer, "subprocess.run("))[0]
    resolving = asyncio.ensure_future(editor.client.code_action_resolve_async(action))
    asked = await model.asked.get()
    buffer.replace(0, 0, "# new\n")
    await editor.caught_up()
    asked.answer(f"```python\n{GOOD}```")
    with pytest.raises(JsonRpcException) as refused:
        await resolving
    assert refused.value.code == types.LSPErrorCodes.ContentModified


async def test_the_embedded_model_is_not_asked_and_the_action_says_so(start: Start) -> None:
    editor = await start(engine={"url": None})
    action = (await offered(editor.open("run.py", SHELL), "subprocess.run("))[0]
    assert action.disabled is not None
    assert "a capable model" in action.disabled.reason
    [deterministic] = await offered(editor.open("load.py", YAML), "yaml.load")
    assert deterministic.disabled is None


async def test_a_text_with_a_secret_is_shown_to_no_model(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start()
    key = "AKIA" + "Q3EXB7ZK2WJH5NTM"
    buffer = editor.open("run.py", SHELL + f"KEY = '{key}'\n")
    action = (await offered(buffer, "subprocess.run("))[0]
    await editor.client.code_action_resolve_async(action)
    [message] = [one.message for one in editor.client.messages]
    assert "it holds an AWS access key" in message
    assert model.prompts == []
