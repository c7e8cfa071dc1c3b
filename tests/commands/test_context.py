"""`qcn context`: what the model sees of a repository, through the real server and engine."""

import json
from pathlib import Path

import pytest
from command_support import qcn
from link_support import processes_of


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "prices.py").write_text("def price(item):\n    return item.price\n" * 9)
    (folder / "main.py").write_text("from lib.prices import price\n\nprint(price(None))\n")
    (folder / ".env").write_text("PASSWORD=hunter2\n")
    (folder / "logo.png").write_bytes(b"\x89PNG\0")
    return folder


def test_it_shows_what_is_read_and_why_the_rest_is_not(runtime: Path, shop: Path) -> None:
    done = qcn("context", shop, "--tokens", "6000", "--json")
    assert done.returncode == 0, done.stderr
    view = json.loads(done.stdout)
    segments = view["segments"]
    assert sorted(segment["path"] for segment in segments) == ["lib/prices.py", "main.py"]
    assert {segment["zone"] for segment in segments} == {"base"}
    assert segments[-1]["start"] + segments[-1]["tokens"] == view["tokens"] <= view["limit"]
    assert view["tokens"] in view["checkpoints"]  # read to its end
    assert view["refreshes"][-1]["computed"] == view["tokens"]
    reasons = dict(view["skipped"])
    assert ".env is a usual name for secrets" in reasons[".env"]
    assert "binary" in reasons["logo.png"]
    assert "hunter2" not in done.stdout
    # In words, and read already: the engine is still there.
    done = qcn("context", shop, "--tokens", "6000")
    assert done.returncode == 0, done.stderr
    assert "lib/prices.py" in done.stdout
    assert "0 read in" in done.stdout
    assert "Not read: .env" in done.stdout
    assert len(processes_of(runtime)) == 1


def test_the_embedded_model_reads_none_unless_told_to(runtime: Path, shop: Path) -> None:
    done = qcn("context", shop)
    assert done.returncode == 1
    assert "set qcn.context.tokens" in done.stderr


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    done = qcn("context", tmp_path / "none")
    assert done.returncode == 1
    assert done.stderr.endswith("none is no folder\n")
