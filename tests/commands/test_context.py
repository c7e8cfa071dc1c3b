"""`qcn context`: what the model sees of a repository, through the real server and engine."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

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
    assert segments[-1]["start"] + segments[-1]["tokens"] == view["tokens"]
    assert view["tokens"] <= view["budget"] == 6000 <= view["limit"]
    assert view["tokens"] in view["checkpoints"]  # read to its end
    assert view["refreshes"][-1]["computed"] == view["tokens"]
    assert {segment["kind"] for segment in segments} == {"file"}
    written = {name: (shop / name).stat().st_mtime for name in ("lib/prices.py", "main.py")}
    assert {segment["path"]: segment["edited"] for segment in segments} == written
    assert view["limit"] < view["context_length"]
    why = {segment["path"]: segment["reasons"] for segment in segments}
    assert why["lib/prices.py"][0] == "edited lately"
    assert "imported by many" in why["lib/prices.py"]
    assert view["bytes"]["used"] <= view["bytes"]["budget"]
    reasons = dict(view["skipped"])
    assert ".env is a usual name for secrets" in reasons[".env"]
    assert "binary" in reasons["logo.png"]
    assert "hunter2" not in done.stdout
    # In words, and read already: the engine is still there.
    done = qcn("context", shop, "--tokens", "6000")
    assert done.returncode == 0, done.stderr
    assert "lib/prices.py" in done.stdout
    assert "edited lately, imported by many" in done.stdout
    assert "MiB in memory" in done.stdout
    places = f"Reading can go on from {len(view['checkpoints'])} places in them, those in front of"
    assert places in " ".join(done.stdout.split())
    marks = [line.split()[2] for line in done.stdout.splitlines() if line.startswith(" *")]
    assert marks == [one["path"] for one in segments if one["start"] in view["checkpoints"]] != []
    [row] = [line.split() for line in done.stdout.splitlines() if _is_refresh(line)]
    assert row[0] == f"{view['tokens']:,}"  # all was known already
    assert row[2] == "0"  # and nothing read
    assert "Not read: .env" in done.stdout
    assert "Not read: logo.png: binary, by its name\n" in done.stdout  # of whatever suffix
    assert len(processes_of(runtime)) == 1


def _is_refresh(line: str) -> bool:
    """Whether a line holds four numbers."""
    fields = line.replace(",", "").split()
    return len(fields) == 4 and all(field.isdigit() for field in fields)


def described(folder: Path) -> dict[str, Any]:
    done = qcn("context", folder, "--tokens", "6000", "--json")
    assert done.returncode == 0, done.stderr
    view: dict[str, Any] = json.loads(done.stdout)
    return view


def test_what_was_read_of_a_repository_can_be_purged(runtime: Path, shop: Path) -> None:
    assert described(shop)["refreshes"][-1]["reused"] == 0
    done = qcn("context", "purge", shop, "--json")
    assert done.returncode == 0, done.stderr
    purged = json.loads(done.stdout)
    assert (purged["repo"], purged["contexts"]) == ("shop", 1)
    assert described(shop)["refreshes"][-1]["reused"] == 0
    # Without an engine, from disk.
    assert qcn("engine", "stop").returncode == 0
    files = list((runtime / "cache").rglob("*.state"))
    assert files
    assert list((runtime / "cache" / "qcn" / "given").iterdir())
    done = qcn("context", "purge", cwd=shop)
    assert done.stdout == (
        "Nothing is kept any more of what was read of shop: contexts forgotten: 0, "
        f"files removed: {len(files)}.\n"
    ), done.stderr
    assert not list((runtime / "cache").rglob("*.state"))
    assert not list((runtime / "cache" / "qcn" / "given").iterdir())
    assert processes_of(runtime) == []


def test_a_folder_that_is_gone_is_purged_by_its_name(runtime: Path, shop: Path) -> None:
    described(shop)
    assert qcn("engine", "stop").returncode == 0
    files = list((runtime / "cache").rglob("*.state"))
    assert files
    shutil.rmtree(shop)
    elsewhere = qcn("context", "purge", shop.parent / "shpo")
    assert elsewhere.returncode == 1
    assert "nothing is kept of a repository named shpo" in elsewhere.stderr
    assert f"then remove {runtime}/cache/qcn/contexts\n" in elsewhere.stderr
    assert list((runtime / "cache").rglob("*.state")) == files
    done = qcn("context", "purge", shop, "--json")
    assert json.loads(done.stdout) == {"repo": "shop", "contexts": 0, "files": len(files)}
    assert not list((runtime / "cache").rglob("*.state"))
    assert not list((runtime / "cache" / "qcn" / "given").iterdir())


def test_a_file_is_no_repository_to_purge(shop: Path) -> None:
    done = qcn("context", "purge", shop / "main.py")
    assert done.returncode == 1
    assert done.stderr.endswith("main.py is no folder\n")


def test_work_trees_of_one_repository_share_what_is_equal(runtime: Path, shop: Path) -> None:
    def git(*arguments: str | Path) -> None:
        who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", shop, *who, *arguments], check=True, capture_output=True)

    git("init")
    git("add", "lib", "main.py")
    git("commit", "-m", "first")
    other = shop.parent / "another name"
    git("worktree", "add", "-b", "other", other)
    (other / "main.py").write_text("from lib.prices import price\n\nprint(price(1))\n")
    for age, name in enumerate(("main.py", "lib/prices.py")):  # the base's order is that of edits
        for folder in (shop, other):
            os.utime(folder / name, (1_700_000_000 - age, 1_700_000_000 - age))
    (shop / "logo.png").unlink()
    first, second = described(shop), described(other)
    assert [view["repo"] for view in (first, second)] == ["shop", "shop"]
    same, own = second["segments"]
    assert same == first["segments"][0]
    assert own["path"] == "main.py"
    [refresh] = second["refreshes"]
    assert (refresh["reused"], refresh["computed"]) == (own["start"], own["tokens"])


def test_the_embedded_model_reads_none_unless_told_to(runtime: Path, shop: Path) -> None:
    done = qcn("context", shop)
    assert done.returncode == 1
    assert "set qcn.context.tokens (of commands: --tokens)" in done.stderr


def test_it_says_how_much_was_allowed_and_what_the_model_takes(runtime: Path, shop: Path) -> None:
    done = qcn("context", shop, "--tokens", "3000")
    assert re.match(
        r"\d+ of 3,000 tokens, .* the model takes 6,144\.", " ".join(done.stdout.split())
    )


@pytest.mark.parametrize("tokens", ["-1", "262145", "many", "1.5"])
def test_tokens_that_the_setting_does_not_take_are_wrong_usage(tmp_path: Path, tokens: str) -> None:
    done = qcn("context", tmp_path, "--tokens", tokens)
    assert done.returncode == 2
    assert "must be a number from 0 to 262144" in done.stderr


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    done = qcn("context", tmp_path / "none")
    assert done.returncode == 1
    assert done.stderr.endswith("none is no folder\n")


def test_two_folders_are_one_too_many(tmp_path: Path) -> None:
    done = qcn("context", "purge", tmp_path, "more")
    assert done.returncode == 1
    assert done.stderr == "qcn: one folder at a time: what is more?\n"
