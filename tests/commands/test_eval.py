"""`qcn eval`: the embedded model is asked through the real engine, and scored."""

import json
from pathlib import Path

import pytest
from command_support import qcn

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
