"""The folders of one window, each with settings of its own where the client tells of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_editor import Buffer, FakeEditor, capabilities, fake_editor
from lsprotocol import types
from scripted_model import ScriptedModel, scripted_model

WEAK = "import hashlib\n\ndigest = hashlib.md5(name)\n"


@asynccontextmanager
async def two_folders(
    tmp_path: Path, client: str = "vscode", health: dict[str, Any] | None = None
) -> AsyncIterator[tuple[FakeEditor, ScriptedModel, Path, Path]]:
    """A session with the folders shop and tools, and a model that always answers `1`."""
    shop, tools = tmp_path / "shop", tmp_path / "tools"
    shop.mkdir()
    tools.mkdir()
    async with scripted_model() as model:
        model.text, model.health = "1", health
        general = {"engine": {"url": model.url}}
        known = capabilities(client)
        async with fake_editor(shop, known, general, roots=[shop, tools]) as editor:
            await editor.configure(general)
            yield editor, model, shop, tools


def opened(editor: FakeEditor, file: Path, text: str = "x = ") -> Buffer:
    return editor.open(file.as_uri(), text)


async def found(buffer: Buffer) -> int:
    """How many weaknesses a client that asks is told of."""
    report = await buffer.editor.client.text_document_diagnostic_async(
        types.DocumentDiagnosticParams(buffer.identifier)
    )
    assert isinstance(report, types.RelatedFullDocumentDiagnosticReport)
    return len(report.items)


async def test_ghost_text_is_on_in_one_folder_and_off_in_the_other(tmp_path: Path) -> None:
    async with two_folders(tmp_path) as (editor, _, shop, tools):
        here, there = opened(editor, shop / "a.py"), opened(editor, tools / "a.py")
        elsewhere = opened(editor, tmp_path / "a.py")
        await editor.configure({"completion": {"inline": False}}, tools)
        assert await here.ghost() == "x = 1‸"
        assert await there.ghost() is None
        assert await elsewhere.ghost() == "x = 1‸"
        assert await there.listed() != []  # only the ghost text is off
        await editor.configure({}, tools)
        assert await there.ghost() == "x = 1‸"


async def test_lengths_and_excluded_languages_are_each_folders_own(tmp_path: Path) -> None:
    async with two_folders(tmp_path) as (editor, model, shop, tools):
        await editor.configure({"completion": {"maxTokens": 7}}, shop)
        await editor.configure({"completion": {"excludedLanguages": ["python"]}}, tools)
        assert await opened(editor, shop / "a.py").ghost() == "x = 1‸"
        assert await opened(editor, tools / "a.py").ghost() is None
        assert [body["max_tokens"] for body in model.bodies] == [7]


async def test_findings_are_told_where_they_are_wanted(tmp_path: Path) -> None:
    async with two_folders(tmp_path) as (editor, _, shop, tools):
        here, there = opened(editor, shop / "a.py", WEAK), opened(editor, tools / "a.py", WEAK)
        await editor.configure({"security": {"findings": False}}, tools)
        assert [await found(here), await found(there)] == [1, 0]
        titles = [action.title for action in await there.actions(select="hashlib.md5(name)")]
        assert not [title for title in titles if "CWE" in title]


async def test_findings_that_were_told_are_taken_back_in_that_folder_alone(tmp_path: Path) -> None:
    async with two_folders(tmp_path, "emacs-eglot") as (editor, _, shop, tools):
        told = asyncio.Queue[types.PublishDiagnosticsParams]()
        editor.client.protocol.fm.features[types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS] = (
            told.put_nowait
        )
        buffers = [opened(editor, folder / "a.py", WEAK) for folder in (shop, tools)]
        first = [await told.get() for _ in buffers]
        assert {one.uri: len(one.diagnostics) for one in first} == {
            buffer.uri: 1 for buffer in buffers
        }
        await editor.configure({"security": {"findings": False}}, tools)
        now: dict[str, int] = {}
        while now.get(buffers[1].uri) != 0:
            one = await told.get()
            now[one.uri] = len(one.diagnostics)
        assert now.get(buffers[0].uri, 1) == 1


async def test_one_folder_is_read_and_the_other_is_not(tmp_path: Path) -> None:
    own_engine = {"state": "ready", "model": "scripted", "context_limit": 20_000}
    async with two_folders(tmp_path, health=own_engine) as (editor, model, shop, tools):
        for folder in (shop, tools):
            (folder / "main.py").write_text("def price(item):\n    return item.price\n")
        await editor.configure({"context": {"repository": False}}, tools)
        here, there = opened(editor, shop / "a.py"), opened(editor, tools / "a.py")
        while not model.bodies or "context" not in model.bodies[-1]:
            here.type("x")
            await here.ghost()
        await there.ghost()
        assert "context" not in model.bodies[-1]
        [layout] = model.layouts.values()
        assert "main.py" in {path for path, _, _ in layout}


async def test_no_folder_sets_what_is_the_users_alone(tmp_path: Path) -> None:
    async with two_folders(tmp_path) as (editor, model, _, tools):
        evil: dict[str, Any] = {"engine": {"url": "http://127.0.0.1:9", "token": "t"}}
        await editor.configure(evil | {"models": {"completion": "/evil"}}, tools)
        assert await opened(editor, tools / "a.py").ghost() == "x = 1‸"
        assert len(model.bodies) == 1


async def test_the_status_is_off_when_every_folder_is(tmp_path: Path) -> None:
    async with two_folders(tmp_path) as (editor, _, shop, tools):
        await editor.configure({"enable": False}, tools)
        assert await opened(editor, tools / "a.py").ghost() is None
        assert [one for one in editor.statuses if one["kind"] == "Inactive"] == []
        await editor.configure({"enable": False}, shop)
        await editor.until_status(kind="Inactive")


@pytest.mark.parametrize("client", ["neovim", "emacs-eglot"])
async def test_a_client_that_answers_the_same_for_all_folders_changes_nothing(
    tmp_path: Path, client: str
) -> None:
    async with two_folders(tmp_path, client) as (editor, model, shop, tools):
        await editor.configure({"engine": {"url": model.url}, "completion": {"maxTokens": 5}})
        for folder in (shop, tools):
            assert await opened(editor, folder / "a.py").ghost() == "x = 1‸"
        assert [body["max_tokens"] for body in model.bodies] == [5, 5]
