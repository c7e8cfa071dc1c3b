"""What the model sees of other open files where no repository context stands in front."""

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from fake_editor import FakeEditor, capabilities, fake_editor
from lsprotocol import types
from scripted_model import ScriptedModel, scripted_model


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".gitignore").write_text("*.log\nout/\n")
    (folder / "build.log").write_text("built\n")
    (folder / "prices.py").write_text("price = 1\n")
    return folder


@pytest_asyncio.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with scripted_model() as served:
        served.text = "1"
        yield served


@pytest_asyncio.fixture
async def editor(root: Path, model: ScriptedModel) -> AsyncIterator[FakeEditor]:
    settings = {"engine": {"url": model.url}, "context": {"repository": False}}
    async with fake_editor(root, capabilities("vscode"), settings) as session:
        yield session


async def test_ignored_files_and_secrets_are_not_shown(
    editor: FakeEditor, model: ScriptedModel
) -> None:
    editor.open("build.log", "built\n", "log")
    editor.open("out/not_saved_yet.py", "ignored = 1\n")
    editor.open("deploy.py", "token = 'ghp_" + "a1B2c3D4e5F6" * 3 + "'\n")
    editor.open("prices.py", "price = 2\n")
    editor.open("new.py", "new = 1\n")
    await editor.open("main.py", "x = ").inline()
    shown = model.prompts[-1].split("<|file_sep|>")[1:-1]
    assert shown == ["prices.py\nprice = 2\n", "new.py\nnew = 1\n"]


async def test_what_becomes_ignored_is_shown_no_more(
    editor: FakeEditor, model: ScriptedModel, root: Path
) -> None:
    editor.open("prices.py", "price = 2\n")
    buffer = editor.open("main.py", "x = ")
    await buffer.inline()
    assert "price = 2" in model.prompts[-1]
    rules = root / ".gitignore"
    rules.write_text("prices.py\n")
    event = types.FileEvent(rules.as_uri(), types.FileChangeType.Changed)
    editor.client.workspace_did_change_watched_files(types.DidChangeWatchedFilesParams([event]))
    buffer.type("1 + ")
    await buffer.inline()
    assert "x = 1 + " in model.prompts[-1]
    assert "price = 2" not in model.prompts[-1]


async def test_the_file_one_is_in_is_completed_though_it_is_ignored(editor: FakeEditor) -> None:
    assert await editor.open("build.py.log", "x = ‸").ghost() == "x = 1‸"


async def test_a_file_with_a_name_for_secrets_is_not_and_the_log_says_so_once(
    capfd: pytest.CaptureFixture[str], root: Path, model: ScriptedModel
) -> None:
    settings = {"engine": {"url": model.url}}
    async with fake_editor(root, capabilities("vscode"), settings) as editor:
        buffer = editor.open(".env.local", "COLOUR=‸\n")
        for typed in "red":
            assert await buffer.inline() == []
            buffer.type(typed)
    assert model.prompts == []
    [said] = [line for line in capfd.readouterr().err.splitlines() if ".env.local" in line]
    assert ".env.local is a usual name for secrets" in said


@pytest.fixture
def work_tree(root: Path) -> Path:
    """Another one of the repository."""
    own = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (
        [*own, "commit", "-q", "--allow-empty", "-m", "first"],
        ["worktree", "add", "-q", "../hotfix"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root.parent / "hotfix"


async def test_a_work_tree_is_called_as_its_repository(
    work_tree: Path, model: ScriptedModel
) -> None:
    """As in the repository's context: the model reads one name, whatever stands in front."""
    settings = {"engine": {"url": model.url}}
    async with fake_editor(work_tree, capabilities("vscode"), settings) as editor:
        await editor.open("a.py", "a = ‸\n").inline()
    assert model.prompts[-1].startswith("<|repo_name|>shop\n")
