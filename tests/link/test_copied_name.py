"""A rename reaches the completion: real server, real engine, a model that was taught to copy."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copying_model import NAMES, call, caller, definition, write_copying_model
from fake_editor import Buffer, FakeEditor, capabilities, fake_editor
from lsprotocol import types

OLD, NEW, NEWEST = NAMES[3], NAMES[8], NAMES[13]


@pytest.fixture(scope="module")
def copying_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_copying_model(tmp_path_factory.mktemp("models") / "copying")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A shop that calls its function by the name it has; on branch `renamed` it has another."""
    folder = tmp_path / "shop"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for branch, name in (("main", OLD), ("renamed", NEWEST)):
        if branch != "main":
            git(folder, "checkout", "-q", "-b", branch)
        (folder / "prices.py").write_text(definition(name))
        (folder / "main.py").write_text(caller(OLD))
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", branch)
    git(folder, "checkout", "-q", "main")
    return folder


def git(root: Path, *command: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *who, *command], check=True, capture_output=True)


@pytest_asyncio.fixture
async def editor(root: Path, runtime: Path, copying_model: Path) -> AsyncIterator[FakeEditor]:
    settings = {"models": {"completion": str(copying_model)}, "context": {"tokens": 4000}}
    async with fake_editor(root, capabilities("vscode"), settings) as editor:
        yield editor


async def completed(buffer: Buffer) -> str | None:
    """The ghost text behind the call's beginning, asked for anew: the place has changed."""
    buffer.type("\n\ndue =")
    before = buffer.text
    marked = await buffer.ghost()
    return None if marked is None else marked.replace("‸", "").removeprefix(before)


async def laid_out(editor: FakeEditor) -> None:
    """Return once the repository stands in front of completions.

    Their answers do not tell: until then the definitions that the cursor needs are shown, and other
    open files, and a name can be copied from those.
    """
    asked = editor.client.protocol.send_request("qcn/context", {"uri": editor.root.as_uri()})
    await asyncio.wrap_future(asked)


async def test_the_call_follows_the_function_through_every_way_it_is_renamed(
    editor: FakeEditor, root: Path
) -> None:
    main = editor.open("main.py", (root / "main.py").read_text())
    prices = editor.open("prices.py", (root / "prices.py").read_text())
    await laid_out(editor)
    assert await completed(main) == call(OLD)

    start = prices.text.index(OLD)
    prices.replace(start, start + len(OLD), NEW)
    assert await completed(main) == call(NEW)

    (root / "prices.py").write_text(prices.text)
    editor.close_all()
    main = editor.open("main.py", (root / "main.py").read_text())
    assert await completed(main) == call(NEW)

    git(root, "checkout", "-qf", "renamed")
    tell(editor, root / "prices.py")
    assert await completed(main) == call(NEWEST)


def tell(editor: FakeEditor, path: Path) -> None:
    """What a client that watches says."""
    event = types.FileEvent(path.as_uri(), types.FileChangeType.Changed)
    editor.client.workspace_did_change_watched_files(types.DidChangeWatchedFilesParams([event]))
