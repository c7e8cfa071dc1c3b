"""`qcn eval`: the embedded model is asked through the real engine, and scored."""

import json
from pathlib import Path, PurePosixPath

import pytest
from chatml_template import write_chat_model
from command_support import WITHOUT_TORCH, qcn
from qcn_indexer.layout import Segment
from scripted_model import scripted_model

from qcn_lsp.commands.console import make_console, progress_on
from qcn_lsp.commands.eval import Asker
from qcn_lsp.engine.client import HttpClient
from qcn_lsp.engine.dialects import OwnEngine
from qcn_lsp.evaluation.questions import Question

FOLDER = {
    "prices.py": "def price_of(item):\n    return item.price\n",
    "shop.py": "from prices import price_of\n\n\ndef total(items):\n"
    "    result = sum(price_of(item) for item in items)\n    return result\n"
    + "".join(f"a{number} = {number}\n" for number in range(20)),
}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "shop"
    folder.mkdir()
    for name, text in FOLDER.items():
        (folder / name).write_text(text)
    return folder


def test_without_an_engine_it_says_so_before_it_reads_anything(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = qcn("eval", shop)
    assert done.returncode == 1
    assert done.stderr.startswith("qcn: The local engine is not installed (torch missing")


def test_it_scores_the_lines_behind_each_context(runtime: Path, shop: Path) -> None:
    done = qcn("eval", "--overlay", shop, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["model"] == "qcn-nano"
    repository, deletion = result["experiments"]
    assert [scores["context"] for scores in repository["scores"]] == [
        "without",
        "with the repository",
    ]
    assert len(deletion["scores"]) == 6
    for experiment in (repository, deletion):
        assert experiment["lines"] == 1
        for scores in experiment["scores"]:
            exact = scores["exact"]
            assert exact["value"] in (0, 1)
            assert exact["low"] <= exact["value"] <= exact["high"]
    assert "git knows no history" in result["notes"][0]
    # Nothing of it is kept.
    assert not list(runtime.rglob("*.state"))
    # In words; the engine is still there.
    done = qcn("eval", shop)
    assert done.returncode == 0, done.stderr
    assert "Lines that use names defined in other files: n = 1" in done.stdout
    assert "with the repository" in done.stdout


def test_a_folder_without_such_lines_is_an_error(tmp_path: Path) -> None:
    done = qcn("eval", tmp_path)
    assert done.returncode == 1
    assert "no line to complete" in done.stderr


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_limit_is_a_number_from_1(tmp_path: Path, limit: str) -> None:
    done = qcn("eval", tmp_path, f"--limit={limit}")
    assert done.returncode == 2
    assert "must be a number from 1" in done.stderr


def test_a_model_that_chats_is_asked_in_both_formats(
    runtime: Path, shop: Path, tmp_path: Path
) -> None:
    """A random one: it completes by a chat only by accident, which is said."""
    model = write_chat_model(tmp_path / "random", context_length=4096)
    done = qcn("eval", shop, "--model", model, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    [formats] = [one for one in result["experiments"] if one["name"] == "format"]
    assert [scores["context"] for scores in formats["scores"]] == [
        "fim, without",
        "chat, without",
        "fim, with the repository",
        "chat, with the repository",
    ]
    [repository] = [one for one in result["experiments"] if one["name"] == "repository"]
    as_told, by_format = repository["scores"], formats["scores"]
    assert [one["exact"] for one in as_told] == [one["exact"] for one in by_format[::2]]
    assert "2 of 2 chats were no search-and-replace" in result["notes"][-1]


def test_a_model_that_does_not_fill_in_the_middle_is_asked_by_chats_alone(
    runtime: Path, shop: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "random"
    model = write_chat_model(folder, context_length=4096, without=["<|fim_middle|>"])
    done = qcn("eval", shop, "--model", model, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    [formats] = result["experiments"]
    assert [scores["context"] for scores in formats["scores"]] == [
        "chat, without",
        "chat, with the repository",
    ]
    assert any("filling in the middle" in note for note in result["notes"])


async def test_a_chat_is_scored_by_what_it_puts_in_the_cursors_place() -> None:
    """One text answers every question.

    It replaces the marker of the first question, of which it tells two lines; of the second the
    text that it searches for is not there.
    """
    repository = (Segment(PurePosixPath("b.py"), "items = []\n", "base", "file"),)
    contexts: dict[str, tuple[Segment, ...]] = {"without": (), "with": repository}
    questions = [
        Question(PurePosixPath("a.py"), f"import sys\n{line}", "\n", "sum(items)", contexts)
        for line in ("total = ", "count = ")
    ]
    async with scripted_model() as model:
        model.text = (
            "<<<<<<< SEARCH\ntotal = [[CURSOR]]\n=======\ntotal = sum(items)\nprint(total)\n"
            ">>>>>>> REPLACE"
        )
        engine = OwnEngine(HttpClient(model.url, name="The engine"), "scripted")
        with progress_on(make_console(stderr=True)) as show:
            asker = Asker(engine, "shop")
            answers, misshapen = await asker.chatted(questions, show)
            (name,) = model.layouts
            assert model.layouts[name] == [("b.py", "items = []\n", "base")]
            assert model.dialects == {name: "chat"}
            await asker.forget()
        await engine.close()
    assert answers == {context: ["sum(items)", ""] for context in contexts}
    assert misshapen == 2
    assert "total = [[CURSOR]]\n" in model.prompts[0]
    assert [body.get("context") for body in model.bodies] == [None, name, None, name]
    assert name in model.deleted
