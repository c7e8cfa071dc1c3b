"""The repository in front of a completion: the real server, an engine that notes what it gets."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_editor import DEADLINE_SECONDS, Buffer, FakeEditor, capabilities, fake_editor
from lsprotocol import types
from scripted_model import ScriptedModel, scripted_model

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
        (root / "README.md").unlink()
        if client == WATCHING:
            tell(editor, new, types.FileChangeType.Created)
            tell(editor, root / "README.md", types.FileChangeType.Deleted)
        await until(lambda: {"lib/tax.py", "README.md"} <= overlay_paths(model.layouts[name]))
        assert ("lib/tax.py", new.read_text(), "overlay") in model.layouts[name]


async def test_what_becomes_ignored_is_gone_and_the_engine_forgets_it(root: Path) -> None:
    async with session(root, WATCHING) as (editor, model):
        buffer = editor.open("main.py", (root / "main.py").read_text())
        await laid_out(buffer, model)
        [name] = model.layouts
        (root / ".gitignore").write_text("build.log\nlib/\n")
        tell(editor, root / ".gitignore", types.FileChangeType.Changed)
        await until(lambda: model.deleted == [name])
        await until(lambda: name in model.layouts)
        assert not any(path.startswith("lib/") for path, _, _ in model.layouts[name])


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


def overlay_paths(layout: Layout) -> set[str]:
    return {path for path, _, zone in layout if zone == "overlay"}


def tell(editor: FakeEditor, path: Path, kind: types.FileChangeType) -> None:
    """What a client that watches says."""
    event = types.FileEvent(path.as_uri(), kind)
    editor.client.workspace_did_change_watched_files(types.DidChangeWatchedFilesParams([event]))
