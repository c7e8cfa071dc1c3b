"""The repository in front of a completion: the real server, an engine that notes what it gets."""

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from fake_editor import DEADLINE_SECONDS, Buffer, FakeEditor, capabilities, fake_editor
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from scripted_model import ScriptedModel, scripted_model

from qcn_lsp.context import live, open_files
from qcn_lsp.context.repository import Repository
from qcn_lsp.documents import Document
from qcn_lsp.engine.client import HttpClient
from qcn_lsp.engine.dialects import OwnEngine
from qcn_lsp.features.suggestions import Place, Suggestions
from qcn_lsp.server import QcnServer, create_server
from qcn_lsp.settings import parse_settings

Layout = list[tuple[str, str, str]]
HEALTH = {"state": "ready", "model": "scripted", "context_limit": 20_000}
# One that tells of changes on disk when it is asked to, and one that does not.
WATCHING, UNWATCHING = "vscode", "minimal"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / "lib").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / "lib" / "prices.py").write_text("def price(item):\n    return item.price\n")
    (folder / "main.py").write_text("from lib.prices import price\n\n")
    (folder / "README.md").write_text("# Shop\n" + "Where things are sold.\n" * 60)
    (folder / ".env").write_text("PASSWORD=hunter2\n")
    (folder / ".gitignore").write_text("build.log\n")
    (folder / "build.log").write_text("ignored\n")
    return folder


@asynccontextmanager
async def session(
    root: Path, client: str = UNWATCHING
) -> AsyncIterator[tuple[FakeEditor, ScriptedModel]]:
    async with scripted_model() as model:
        model.health, model.text = HEALTH, "1"
        settings = {"engine": {"url": model.url}}
        async with fake_editor(root, capabilities(client), settings) as editor:
            yield editor, model


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - the server is another process
            await asyncio.sleep(0.01)


async def complete(buffer: Buffer) -> None:
    """Ask where nothing has been asked before."""
    buffer.type("x")
    await buffer.inline()


async def laid_out(buffer: Buffer, model: ScriptedModel) -> None:
    """Complete until the repository has been laid out and stands in front."""
    await complete(buffer)
    await until(lambda: bool(model.layouts))
    async with asyncio.timeout(DEADLINE_SECONDS):
        while "context" not in model.bodies[-1]:
            await complete(buffer)


def layout_of(model: ScriptedModel) -> Layout:
    """What stood in front of the last completion."""
    return model.layouts[model.bodies[-1]["context"]]


async def test_the_repository_stands_in_front_without_its_secrets(root: Path) -> None:
    async with session(root) as (editor, model):
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        layout = layout_of(model)
        assert {path for path, _, _ in layout} == {
            ".gitignore",
            "README.md",
            "lib/prices.py",
            "main.py",
        }
        assert ("lib/prices.py", "def price(item):\n    return item.price\n", "base") in layout
        assert layout[-1][0] == "main.py"  # what is open stands last
        assert "input_extra" not in model.bodies[-1] or model.bodies[-1]["input_extra"] == []
        assert not any("hunter2" in text or "ignored" in text for _, text, _ in layout)


async def test_a_folder_that_leaves_the_workspace_is_watched_no_more(root: Path) -> None:
    """Come back, it is laid out anew, with what was written meanwhile."""
    async with session(root, "neovim-0.12") as (editor, model):
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        folder = types.WorkspaceFolder(root.as_uri(), "shop")
        for event in (
            types.WorkspaceFoldersChangeEvent(added=[], removed=[folder]),
            types.WorkspaceFoldersChangeEvent(added=[folder], removed=[]),
        ):
            editor.client.workspace_did_change_workspace_folders(
                types.DidChangeWorkspaceFoldersParams(event)
            )
        send = editor.client.protocol.send_request_async
        now = {"uri": root.as_uri(), "now": True}
        with pytest.raises(JsonRpcException, match="from the first completion in it on"):
            await send("qcn/context", now)  # type: ignore[no-untyped-call]
        (root / "late.py").write_text("late = 1\n")
        await laid_out(buffer, model)
        await until(lambda: any(path == "late.py" for path, _, _ in layout_of(model)))


async def test_until_it_is_laid_out_the_open_files_are_shown(root: Path) -> None:
    async with session(root) as (editor, model):
        editor.open("lib/prices.py", "def price(): ...\n")
        await complete(editor.open("main.py", "x = "))
        body = model.bodies[0]
        assert "context" not in body
        assert [file["filename"] for file in body["input_extra"]] == ["lib/prices.py"]


async def test_a_completion_right_after_a_change_elsewhere_sees_it(root: Path) -> None:
    async with session(root) as (editor, model):
        prices = editor.open("lib/prices.py", (root / "lib/prices.py").read_text())
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        before = layout_of(model)
        start = prices.text.index("price(")
        prices.replace(start, start + len("price"), "cost")
        await complete(buffer)
        after = layout_of(model)
        assert after[: len(before)] == before  # the old text, and behind it the new one
        path, text, zone = after[-1]
        assert (path, zone) == ("lib/prices.py", "overlay")
        assert "def cost(item)" in text


async def test_the_engine_is_told_which_lines_are_superseded(root: Path) -> None:
    async with session(root) as (editor, model):
        prices = editor.open("lib/prices.py", (root / "lib/prices.py").read_text())
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        name = model.bodies[-1]["context"]
        assert not any(model.superseded[name])
        start = prices.text.index("price(")
        prices.replace(start, start + len("price"), "cost")
        await complete(buffer)
        said = dict(zip(layout_of(model), model.superseded[name], strict=True))
        [old, new] = [(part, spans) for part, spans in said.items() if part[0] == "lib/prices.py"]
        assert (old[1], new[1]) == ([[0, 3]], [])  # so short a file is said whole
        assert sum(map(bool, said.values())) == 1


@pytest.mark.parametrize("how", ["removed", "moved away"])
async def test_a_folder_that_takes_the_roots_place_is_read_and_watched(
    root: Path, how: str
) -> None:
    """As where a repository is cloned anew: the system watches folders, not their paths."""
    async with session(root) as (editor, model):
        buffer = editor.open("scratch.py", "x = ")
        await laid_out(buffer, model)
        if how == "removed":
            shutil.rmtree(root)
        else:
            shutil.move(root, root.with_name("old"))
        for version in ("second", "third"):
            (root / "lib").mkdir(parents=True, exist_ok=True)
            (root / "lib" / "prices.py").write_text(f"def {version}(item): ...\n")
            async with asyncio.timeout(DEADLINE_SECONDS):
                shown = ""
                while version not in shown:
                    await complete(buffer)
                    shown = str(layout_of(model)) if "context" in model.bodies[-1] else ""


@pytest.mark.parametrize("how", ["saved and closed", "checked out"])
async def test_a_completion_right_after_a_change_on_disk_sees_it(root: Path, how: str) -> None:
    renamed = root / "lib" / "prices.py"
    text = renamed.read_text()
    for branch, name in (("old", "price("), ("new", "cost(")):
        renamed.write_text(text.replace("price(", name))
        git(root, "checkout", "-q", "-b", branch)
        git(root, "add", "lib")
        git(root, "commit", "-q", "-m", branch)
    git(root, "checkout", "-q", "old")
    async with session(root, WATCHING) as (editor, model):
        prices = editor.open("lib/prices.py", text)
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        before = layout_of(model)
        if how == "checked out":
            editor.close("lib/prices.py")
            git(root, "checkout", "-q", "new")
            tell(editor, types.FileChangeType.Changed, renamed)
        else:
            start = prices.text.index("price(")
            prices.replace(start, start + len("price"), "cost")
            renamed.write_text(prices.text)
            editor.close("lib/prices.py")
        await complete(buffer)
        after = layout_of(model)
        assert after[: len(before)] == before  # the old text, and behind it the new one
        path, new, zone = after[-1]
        assert (path, zone) == ("lib/prices.py", "overlay")
        assert "def cost(item)" in new


async def test_a_file_that_was_emptied_and_is_then_removed_is_gone(root: Path) -> None:
    async with session(root, WATCHING) as (editor, model):
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        (root / ".gitignore").write_text("")
        tell(editor, types.FileChangeType.Changed, root / ".gitignore")
        [name] = model.layouts
        await until(lambda: (".gitignore", "", "overlay") in model.layouts[name])
        (root / ".gitignore").unlink()
        tell(editor, types.FileChangeType.Deleted, root / ".gitignore")
        await until(lambda: (".gitignore", "(deleted)\n", "overlay") in model.layouts[name])


async def test_a_completion_right_after_many_changes_on_disk_has_them_all_or_no_context(
    root: Path,
) -> None:
    async with session(root, WATCHING) as (editor, model):
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        created = [root / f"{number}.py" for number in range(100)]
        for new in created:
            new.write_text("x = 1\n")
        tell(editor, types.FileChangeType.Created, *created)
        await complete(buffer)
        if "context" in model.bodies[-1]:  # the burst was over by then, on a slow machine
            assert "99.py" in {path for path, _, _ in layout_of(model)}


async def test_a_hundred_edits_leave_one_entry(root: Path) -> None:
    async with session(root) as (editor, model):
        prices = editor.open("lib/prices.py", (root / "lib/prices.py").read_text())
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        base = len(layout_of(model))
        for _ in range(20):
            prices.type("y\n")
            await complete(buffer)
        assert len(layout_of(model)) == base + 1
        assert layout_of(model)[-1][1].count("y\n") == 20


async def test_open_files_that_are_as_they_were_cost_nothing(root: Path) -> None:
    async with session(root) as (editor, model):
        prices = editor.open("lib/prices.py", (root / "lib/prices.py").read_text())
        editor.open("README.md", (root / "README.md").read_text(), "markdown")
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        model.counted.clear()
        await complete(buffer)
        assert model.counted == []
        prices.type("y\n")
        await complete(buffer)
        assert model.counted
        assert all(text.startswith("lib/prices.py\n") for text in model.counted)


async def test_a_change_on_disk_has_git_asked_twice_however_many_files_are_open(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for the look at it, once for what is shown: each takes a process."""
    repository = Repository(root, count=len, budget=9_000)
    repository.read({})
    asked, run = [], subprocess.run

    def counting(command: list[str], **named: Any) -> Any:
        asked.append(command[2])
        return run(command, **named)

    monkeypatch.setattr(subprocess, "run", counting)
    (root / "lib" / "prices.py").write_text("def cost(item): ...\n")
    repository.take_in(repository.look([PurePosixPath("lib")]))
    repository.show({PurePosixPath(f"{number}.py"): "x = 1\n" for number in range(10)})
    assert asked == ["config", "config"]
    assert "9.py" in {str(segment.path) for segment in repository.layout.segments}


async def test_of_several_folders_the_engine_is_given_what_is_new(tmp_path: Path) -> None:
    roots = [tmp_path / "shop", tmp_path / "till"]
    for folder in roots:
        folder.mkdir()
        for name in ("a.py", "b.py"):
            (folder / name).write_text(f"# {folder.name}, {name}\n" * 20)
    async with scripted_model() as model:
        model.health, model.text = HEALTH, "1"
        settings = {"engine": {"url": model.url}}
        client = capabilities(UNWATCHING)
        async with fake_editor(roots[0], client, settings, roots=roots) as editor:
            buffers = []
            for folder in roots:
                path = folder / "a.py"
                edited = editor.open(path.as_uri(), path.read_text())
                buffers.append((edited, editor.open((folder / "new.py").as_uri(), "x = ")))
                await laid_out(buffers[-1][1], model)
            model.sent.clear()
            for edited, buffer in buffers:
                edited.type("y\n")
                await complete(buffer)
        assert {path for paths in model.sent for path in paths} == {"a.py"}


async def test_what_is_typed_as_suggested_after_a_change_elsewhere_costs_nothing(
    root: Path,
) -> None:
    async with session(root) as (editor, model):
        prices = editor.open("lib/prices.py", (root / "lib/prices.py").read_text())
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        prices.type("y\n")
        model.text = "12345"
        asked = len(model.bodies)
        await complete(buffer)
        for typed in "123":
            buffer.type(typed)
            (item,) = await buffer.inline()
            assert (
                item.insert_text == f"{buffer.text.splitlines()[-1]}{'12345'.partition(typed)[2]}"
            )
        assert len(model.bodies) == asked + 1


async def test_a_document_that_is_opened_again_with_another_text_is_another(root: Path) -> None:
    """Its versions are counted anew."""
    async with session(root) as (editor, model):
        editor.open("lib/prices.py", "def price(item): ...\n")
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        await buffer.inline()
        editor.close("lib/prices.py")
        editor.open("lib/prices.py", "def cost(item): ...\n")
        asked = len(model.bodies)
        await buffer.inline()
        assert len(model.bodies) == asked + 1
        assert any("def cost" in text for _, text, _ in layout_of(model))


async def test_no_uri_leads_out_of_the_folder(root: Path) -> None:
    elsewhere = root.parent / "elsewhere.py"
    elsewhere.write_text("secret = 1\n")
    uri = f"{root.as_uri()}/../elsewhere.py"
    async with session(root, WATCHING) as (editor, model):
        editor.open(uri, "secret = 1\n")
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        event = types.FileEvent(uri, types.FileChangeType.Changed)
        editor.client.workspace_did_change_watched_files(types.DidChangeWatchedFilesParams([event]))
        await complete(buffer)
        assert "secret" not in str(model.bodies) + str(model.layouts)


async def test_what_has_changed_too_much_is_laid_out_anew(root: Path) -> None:
    (root / "README.md").write_text("# Shop\n")  # what is left makes up little of the whole
    async with session(root) as (editor, model):
        prices = editor.open("lib/prices.py", (root / "lib/prices.py").read_text())
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        prices.replace(0, len(prices.text), "def cost(thing):\n    return 2 * thing.weight\n")
        await complete(buffer)
        [name] = model.layouts
        await until(lambda: overlay_paths(model.layouts[name]) == set())
        assert ("lib/prices.py", prices.text, "base") in model.layouts[name]


async def test_what_is_typed_in_the_file_itself_is_no_change_of_the_repository(
    root: Path,
) -> None:
    async with session(root) as (editor, model):
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        before = layout_of(model)
        for _ in range(3):
            await complete(buffer)
        assert layout_of(model) == before


@pytest.mark.parametrize("client", [WATCHING, UNWATCHING])
async def test_a_change_on_disk_is_taken_in(root: Path, client: str) -> None:
    async with session(root, client) as (editor, model):
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        [name] = model.layouts
        new = root / "lib" / "tax.py"
        new.write_text("def tax(price):\n    return 0.2 * price\n")
        gone = root / "lib" / "prices.py"
        gone.unlink()
        if client == WATCHING:
            tell(editor, types.FileChangeType.Created, new)
            tell(editor, types.FileChangeType.Deleted, gone)
        await until(lambda: {"lib/tax.py", "lib/prices.py"} <= overlay_paths(model.layouts[name]))
        assert ("lib/tax.py", new.read_text(), "overlay") in model.layouts[name]


async def test_what_becomes_ignored_is_gone_and_the_engine_forgets_it(root: Path) -> None:
    async with session(root, WATCHING) as (editor, model):
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        [name] = model.layouts
        (root / ".gitignore").write_text("build.log\nlib/\n")
        tell(editor, types.FileChangeType.Changed, root / ".gitignore")
        await until(lambda: model.deleted == [name])
        # Said by name: what an engine that has left since had read of it is on disk.
        assert model.deleted_repositories == [root.name]
        await until(lambda: name in model.layouts)
        assert not any(path.startswith("lib/") for path, _, _ in model.layouts[name])


@pytest.mark.parametrize("becomes", ["ignored", "a secret", "ignored and removed"])
async def test_what_becomes_ignored_while_no_editor_is_open_is_forgotten_too(
    root: Path, becomes: str
) -> None:
    """Once: what is read from then on was allowed when it was read."""
    prices = root / "lib" / "prices.py"
    async with session(root) as (editor, model):
        await laid_out(editor.open("main.py", "x = "), model)
        assert "lib/prices.py" in {path for path, _, _ in layout_of(model)}
    if becomes == "a secret":
        prices.write_text("token = 'ghp_" + "a1B2c3D4e5F6" * 3 + "'\n")
    else:
        (root / ".gitignore").write_text("build.log\nlib/\n")
    if becomes == "ignored and removed":
        prices.unlink()
    for forgotten in ([root.name], []):
        async with session(root) as (editor, model):
            await laid_out(editor.open("main.py", "x = "), model)
            assert model.deleted_repositories == forgotten
            assert "lib/prices.py" not in {path for path, _, _ in layout_of(model)}


async def test_what_is_removed_or_written_while_no_editor_is_open_is_not(root: Path) -> None:
    """A branch that one returns to is still on disk."""
    for _ in range(2):
        async with session(root) as (editor, model):
            await laid_out(editor.open("main.py", "x = "), model)
            assert model.deleted_repositories == []
        (root / "lib" / "prices.py").unlink(missing_ok=True)
        (root / "lib" / "new.py").write_text("new = 1\n")


async def test_the_names_of_what_was_given_are_the_users_alone_and_none_where_nothing_is_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = tmp_path / "cache" / "qcn" / "given"
    async with session(root) as (editor, model):
        await editor.configure({"engine": {"url": model.url}, "context": {"diskMiB": 0}})
        await laid_out(editor.open("main.py", "x = "), model)
    assert not given.exists()
    async with session(root) as (editor, model):
        await laid_out(editor.open("main.py", "x = "), model)
    [file] = given.iterdir()
    assert [path.stat().st_mode & 0o777 for path in (given, file)] == [0o700, 0o600]
    assert '"lib/prices.py"' in file.read_text()
    assert "def price" not in file.read_text()


RATES = (
    'def rate(country: str, year: int) -> float:\n    """What is added to a price."""\n'
    "    return 0.2\n\n\n" + "# The rates of all countries.\n" * 400
)
RATE = 'def rate(country: str, year: int) -> float:\n    """What is added to a price."""\n'
USES_RATE = "from lib.rates import rate\nfrom lib.prices import price\n\nx = rate(price("


def extra_of(model: ScriptedModel) -> dict[str, str]:
    """What the last completion showed of other files, beside the context."""
    shown = model.bodies[-1].get("input_extra", [])
    return {file["filename"]: file["text"] for file in shown}


async def test_what_the_cursor_needs_of_a_file_too_large_for_the_context_is_shown(
    root: Path,
) -> None:
    (root / "lib" / "rates.py").write_text(RATES)
    async with session(root) as (editor, model):
        buffer = editor.open("main.py", USES_RATE)
        await laid_out(buffer, model)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not extra_of(model):  # a completion does not wait for it for long
                await complete(buffer)
        assert extra_of(model) == {"lib/rates.py": RATE}  # prices.py is in the context as a whole
        assert ("lib/rates.py", RATES, "base") not in layout_of(model)
        for typed in ("1", ")", ")\n", "y = 2\n", "print(x"):
            buffer.type(typed)
            await buffer.inline()
            assert extra_of(model) == {"lib/rates.py": RATE}  # what stands behind is not read anew


async def test_without_a_context_what_the_cursor_needs_is_shown_behind_the_open_files(
    root: Path,
) -> None:
    (root / "lib" / "rates.py").write_text(RATES)
    async with session(root) as (editor, model):
        assert model.health is not None
        model.health = {**model.health, "context_limit": 6000}
        editor.open("lib/prices.py", (root / "lib/prices.py").read_text())
        buffer = editor.open("main.py", USES_RATE)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not model.bodies or "lib/rates.py" not in extra_of(model):
                await complete(buffer)
        shown = [file["filename"] for file in model.bodies[-1]["input_extra"]]
        assert shown == ["lib/prices.py", "lib/rates.py"]
        assert extra_of(model)["lib/rates.py"] == RATE


async def test_the_setting_keeps_definitions_of_other_files_out_too(root: Path) -> None:
    async with session(root) as (editor, model):
        await editor.configure({"engine": {"url": model.url}, "context": {"repository": False}})
        buffer = editor.open("main.py", "from lib.prices import price\nx = price(")
        for _ in range(5):
            await complete(buffer)
            assert extra_of(model) == {}


async def test_what_becomes_ignored_among_many_changes_is_forgotten_too(root: Path) -> None:
    async with session(root, WATCHING) as (editor, model):
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        [name] = model.layouts
        (root / ".gitignore").write_text("build.log\nlib/\n")
        changed = [root / ".gitignore", *(root / f"part{number}.py" for number in range(150))]
        for path in changed[1:]:
            path.write_text("x = 1\n")
        tell(editor, types.FileChangeType.Changed, *changed)
        await until(lambda: model.deleted == [name])
        await until(lambda: name in model.layouts)
        paths = {path for path, _, _ in model.layouts[name]}
        assert {"part0.py", "part149.py"} <= paths
        assert not any(path.startswith("lib/") for path in paths)


async def test_a_buffer_that_holds_a_secret_is_in_no_layout(root: Path) -> None:
    async with session(root) as (editor, model):
        editor.open("lib/prices.py", "token = 'ghp_" + "a1B2c3D4e5F6" * 3 + "'\n")
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        assert not any("ghp_" in text for _, text, _ in layout_of(model))
        assert "ghp_" not in "".join(map(str, model.bodies))


@asynccontextmanager
async def in_this_process(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, watches: bool
) -> AsyncIterator[tuple[QcnServer, Document, ScriptedModel]]:
    """A server without a client that has begun to read `root`, where its times can be changed."""
    server = create_server()
    server.workspace_roots = [root]
    uri = (root / "main.py").as_uri()
    server.documents.open(types.TextDocumentItem(uri, "python", 1, "x = "))
    document = server.documents.get(uri)
    assert document is not None
    monkeypatch.setattr(type(server), "client_watches_files", watches)
    monkeypatch.setattr(server.status, "progress_bar", lambda *_: None)
    async with scripted_model() as model:
        model.health = HEALTH
        engine = OwnEngine(HttpClient(model.url, name="the model"), None)
        server.contexts.begin(root, engine)
        await until(lambda: server.contexts.state(root) is not None)
        yield server, document, model
        server.contexts.end_all()
        await engine.close()


async def test_a_change_that_nothing_told_of_is_found_by_content(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look which is due now and then is due at once here."""
    monkeypatch.setattr(live, "RECONCILE_SECONDS", 0.0)
    file = root / "lib" / "prices.py"
    long_ago = (1_700_000_000, 1_700_000_000)
    os.utime(file, long_ago)
    async with in_this_process(root, monkeypatch, watches=True) as (server, document, model):
        file.write_text(file.read_text().replace("item", "good"))  # as long as before
        os.utime(file, long_ago)
        name = await server.contexts.name_for(root, document)
        assert name is not None
        await until(lambda: any("def price(good)" in text for _, text, _ in model.layouts[name]))


async def test_a_change_during_the_first_reading_is_taken_in(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the client tells of none: the system must be watched by then."""
    file, read = root / "lib" / "prices.py", Repository.read

    def slow(*given: Any) -> None:
        read(*given)
        file.write_text("def price(good): ...\n")

    monkeypatch.setattr(Repository, "read", slow)
    async with in_this_process(root, monkeypatch, watches=False) as (_, _, model):
        [name] = model.layouts
        await until(lambda: any("def price(good)" in text for _, text, _ in model.layouts[name]))


async def test_a_completion_waits_for_the_look_at_few_changes_that_is_under_way(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, look = root / "lib" / "prices.py", Repository.look
    begun, go_on = threading.Event(), threading.Event()

    def slow(*given: Any, **named: Any) -> Any:
        begun.set()
        go_on.wait()
        return look(*given, **named)

    async with in_this_process(root, monkeypatch, watches=True) as (server, document, model):
        monkeypatch.setattr(Repository, "look", slow)
        file.write_text("def price(good): ...\n")
        server.contexts.changed_on_disk([file])
        await until(begun.is_set)  # when the burst of one change is over
        asked = asyncio.create_task(server.contexts.name_for(root, document))
        await asyncio.sleep(0)  # it comes as far as it can
        go_on.set()
        name = await asked
        assert name is not None
        assert any("def price(good)" in text for _, text, _ in model.layouts[name])


async def test_where_too_much_has_changed_the_open_files_are_judged_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the rules said of them long ago, before there was a context, holds no more."""
    monkeypatch.setattr(open_files, "VERDICT_SECONDS", 0.0)
    go_on, look = threading.Event(), Repository.look

    def slow(*given: Any, **named: Any) -> Any:
        go_on.wait()
        return look(*given, **named)

    async with in_this_process(root, monkeypatch, watches=True) as (server, document, model):
        monkeypatch.setattr(server.protocol, "notify", lambda *_: None)
        server.settings, _ = parse_settings({"engine": {"url": model.url}})
        model.text = "1"
        for name in ("private.py", "public.py"):
            uri = (root / name).as_uri()
            server.documents.open(types.TextDocumentItem(uri, "python", 1, f"# {name}\n"))
        await server.open_files.judge(root)
        monkeypatch.setattr(Repository, "look", slow)
        (root / ".gitignore").write_text("private.py\n")
        server.contexts.changed_on_disk([root / f"{number}.py" for number in range(100)])
        try:
            await Suggestions(server).at(Place(document, 4), automatic=False)
        finally:
            go_on.set()
        [body] = model.bodies
        assert "context" not in body
        assert [file["filename"] for file in body["input_extra"]] == ["public.py"]
        await server.engine.close()


async def test_an_engine_that_lost_the_context_is_given_it_again(root: Path) -> None:
    async with session(root) as (editor, model):
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        model.forget()
        await complete(buffer)
        assert "context" not in model.bodies[-1]  # answered all the same, with the open files
        await complete(buffer)
        assert layout_of(model)


async def test_the_setting_keeps_it_out(root: Path) -> None:
    async with session(root) as (editor, model):
        await editor.configure({"engine": {"url": model.url}, "context": {"repository": False}})
        buffer = editor.open("main.py", "")
        for _ in range(5):
            await complete(buffer)
        assert model.layouts == {}


async def test_a_model_that_takes_little_gets_none_unless_it_is_asked_for(root: Path) -> None:
    async with session(root) as (editor, model):
        assert model.health is not None
        model.health = {**model.health, "context_limit": 6000}
        buffer = editor.open("main.py", "")
        for _ in range(5):
            await complete(buffer)
        assert model.layouts == {}
        await editor.configure({"engine": {"url": model.url}, "context": {"tokens": 4000}})
        await laid_out(buffer, model)


async def test_the_first_reading_is_shown_file_by_file(root: Path) -> None:
    async with session(root, WATCHING) as (editor, model):
        model.read = 1
        buffer = editor.open("main.py", "x = ")
        await complete(buffer)
        await until(lambda: any(percentage(report) == 25 for report in reports(editor)))
        begin, *_, report = reports(editor)
        assert isinstance(begin, types.WorkDoneProgressBegin)
        assert (begin.title, begin.cancellable) == ("Reading shop", True)
        assert isinstance(report, types.WorkDoneProgressReport)
        assert report.message == "1 of 4 files, 1 of 4 tokens"
        model.read = None
        await until(lambda: reports(editor)[-1] == types.WorkDoneProgressEnd(message="Read"))
        # Too late: what is read stays.
        [token] = editor.client.progress_reports
        editor.client.window_work_done_progress_cancel(types.WorkDoneProgressCancelParams(token))
        await complete(buffer)
        assert layout_of(model)


@pytest.mark.parametrize("client", [WATCHING, UNWATCHING])  # with and without progress bars
async def test_where_nothing_is_kept_on_disk_the_user_hears_it_once(
    root: Path, client: str
) -> None:
    problem = "contexts are not kept on disk in /cache/qcn: [Errno 13] Permission denied"
    async with session(root, client) as (editor, model):
        model.health = HEALTH | {"disk_cache_problem": problem}
        buffer = editor.open("main.py", "x = ")
        await laid_out(buffer, model)
        await until(lambda: bool(editor.client.messages))
        # Other settings begin another context: it is not told again.
        await editor.configure({"engine": {"url": model.url}, "context": {"tokens": 4000}})
        model.layouts.clear()
        await laid_out(buffer, model)
        await editor.caught_up()
        [message] = editor.client.messages
        assert message.type is types.MessageType.Warning
        assert message.message.startswith(f"C{problem[1:]}. ")
        assert "XDG_CACHE_HOME" in message.message
        assert "qcn.context.diskMiB" in message.message


async def test_a_reading_that_the_user_ends_is_over_until_the_settings_change(root: Path) -> None:
    async with session(root, WATCHING) as (editor, model):
        model.read = 1
        buffer = editor.open("main.py", "x = ")
        await complete(buffer)
        await until(lambda: any(percentage(report) == 25 for report in reports(editor)))
        [name], [token] = model.layouts, editor.client.progress_reports
        editor.client.window_work_done_progress_cancel(types.WorkDoneProgressCancelParams(token))
        await until(lambda: model.layouts[name] == [])
        await editor.caught_up()
        assert reports(editor)[-1] == types.WorkDoneProgressEnd(message="Not read")
        [message] = editor.client.messages
        assert "turn the setting qcn.context.repository off and on" in message.message
        for _ in range(3):
            await complete(buffer)
        assert model.layouts == {name: []}
        assert "context" not in model.bodies[-1]
        settings = {"engine": {"url": model.url}}
        await editor.configure(settings | {"context": {"repository": False}})
        await editor.configure(settings)
        model.layouts.clear()
        await laid_out(buffer, model)


def reports(editor: FakeEditor) -> list[object]:
    """What the one progress bar has shown."""
    return [report for bar in editor.client.progress_reports.values() for report in bar]


def percentage(report: object) -> object:
    return getattr(report, "percentage", None)


@pytest.mark.parametrize("files", [12, 150])
async def test_going_back_to_a_branch_takes_the_layout_that_it_had(root: Path, files: int) -> None:
    def write(version: str) -> list[Path]:
        """As a switch of branches does, file by file."""
        paths = [root / "lib" / f"part{number}.py" for number in range(files)]
        for number, path in enumerate(paths):
            path.write_text(f"def part{number}():\n    return {version}\n")
        return paths

    async with session(root, WATCHING) as (editor, model):
        changed = write("1")
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        [name], first = model.layouts, layout_of(model)
        assert len(first) == 4 + files
        for version, expected in (("'a new branch'", None), ("1", first)):
            write(version)
            tell(editor, types.FileChangeType.Changed, *changed)

            def taken_in(version: str = version, expected: Layout | None = expected) -> bool:
                layout = model.layouts[name]
                texts = [text for path, text, _ in layout if path.startswith("lib/part")]
                compacted = not overlay_paths(layout) and all(version in text for text in texts)
                return layout == expected if expected else compacted

            await until(taken_in)
        await complete(buffer)
        assert layout_of(model) == first


def overlay_paths(layout: Layout) -> set[str]:
    return {path for path, _, zone in layout if zone == "overlay"}


def git(root: Path, *command: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *who, *command], check=True, capture_output=True)


def tell(editor: FakeEditor, kind: types.FileChangeType, *paths: Path) -> None:
    """What a client that watches says: all at once, so that it is one burst however slow we are."""
    events = [types.FileEvent(path.as_uri(), kind) for path in paths]
    editor.client.workspace_did_change_watched_files(types.DidChangeWatchedFilesParams(events))
