"""The replay: histories are what was recorded, and what it counts can be checked by hand."""

import gzip
import itertools
import json
import os
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qcn_indexer.overlay import Deleted, Renamed, Written
from sampling import examples

from benchmarks import machine, report, results
from benchmarks.histories import (
    MOST_SAVES,
    TRACES,
    Change,
    Commit,
    History,
    from_git,
    from_trace,
    saves,
)
from benchmarks.replay import BLOCK, count, events, replay

A, B = PurePosixPath("a.py"), PurePosixPath("b.py")
TEXT = st.lists(st.sampled_from(["a", "b", "", "c"]), max_size=60).map("\n".join)


@pytest.mark.long
@examples(sample=100, full=5000)
@given(old=TEXT, new=TEXT)
def test_saves_lead_from_the_old_text_to_the_new(old: str, new: str) -> None:
    texts = saves(old, new)
    assert len(texts) <= MOST_SAVES
    assert texts[-1:] == ([new] if new != old else [])
    assert all(text != after for text, after in zip([old, *texts], texts, strict=False))


def test_saves_type_the_changed_lines_from_top_to_bottom() -> None:
    assert saves("a\nb\nc\nd\n", "a\nB\nc\nD\n") == ["a\nB\nc\nd\n", "a\nB\nc\nD\n"]


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.gz")), ids=lambda path: path.name)
def test_made_up_texts_have_the_recorded_lengths(path: Path) -> None:
    with gzip.open(path, "rt") as file:
        head, *lines = map(json.loads, file)
    history = from_trace(path)
    assert {str(at): len(text) for at, text in history.start.items()} == head["files"]
    for line, commit in zip(lines, history.commits, strict=True):
        recorded = [None if one["kind"] == "delete" else one["size"] for one in line["changes"]]
        made_up = [None if one.text is None else len(one.text) for one in commit.changes]
        assert made_up == recorded


def test_a_repositorys_history_has_its_texts_and_its_renames(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        people = itertools.product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL"))
        quiet = {f"GIT_{who}_{what}": "x" for who, what in people}
        environment = os.environ | quiet | {"GIT_CONFIG_GLOBAL": os.devnull}
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, env=environment)

    def commit() -> None:
        git("add", "--all")
        git("commit", "--quiet", "--message", "x")

    long = "".join(f"line {number}\n" for number in range(20))
    git("init", "--quiet")
    (tmp_path / "a.py").write_text(long)
    (tmp_path / "data.bin").write_bytes(b"\0\1")
    commit()
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    (tmp_path / "c ü.py").write_text("c\n")
    commit()
    (tmp_path / "b.py").write_text(long + "more\n")
    (tmp_path / "c ü.py").unlink()
    commit()

    history = from_git(tmp_path, name="small", commits=10)

    other = PurePosixPath("c ü.py")
    assert history.start == {A: long}
    assert [commit.changes for commit in history.commits] == [
        (Change(B, long, A), Change(other, "c\n")),
        (Change(B, long + "more\n"), Change(other, None)),
    ]


def test_files_of_a_commit_are_saved_in_turns_and_those_of_a_bulk_change_once() -> None:
    old, new = "1\n2\n3\n", "one\n2\nthree\n"
    commit = Commit(0, (Change(A, new), Change(B, None), Change(PurePosixPath("c"), old, B)))
    half = "one\n2\n3\n"
    assert list(events(commit, {A: old, B: old})) == [
        Written(A, half),
        Deleted(B),
        Renamed(B, PurePosixPath("c")),
        Written(A, new),
    ]
    bulk = Commit(0, tuple(Change(PurePosixPath(str(n)), new) for n in range(40)))
    texts = {change.path: old for change in bulk.changes}
    assert list(events(bulk, texts)) == [Written(PurePosixPath(str(n)), new) for n in range(40)]


def test_what_a_save_costs_can_be_checked_by_hand() -> None:
    """Three files of 100 lines; the first in path order is saved with a line more at its end."""
    line = "x = 1234567890123456789012345678901\n"  # 36 bytes
    numbered = {name: "".join(f"{n:03}{line[3:]}" for n in range(100)) for name in "abc"}
    start = {PurePosixPath(f"{name}.py"): text for name, text in numbered.items()}
    commits = (Commit(1e9, (Change(A, numbered["a"] + "y = 1\n"),)),)

    figures = replay(History("small", start, commits), 65_536)

    file = 1 + count(f"a.py\n{numbered['a']}")
    grown = 1 + count(f"a.py\n{numbered['a']}y = 1\n")
    shared = int(len(numbered["a"]) / 3.5)
    quoted = "".join(f"{n:03}{line[3:]}" for n in (97, 98, 99))
    entry = 1 + count(f"a.py\noriginal:\n{quoted}\nupdated:\n{quoted}y = 1\n\n")
    assert figures["saves"] == 1
    computed = {way: figure["median"] for way, figure in figures["computed"].items()}
    assert computed == {
        "ours": pytest.approx(BLOCK + entry, rel=1e-3),
        "path_order": pytest.approx(grown - shared + 2 * file, rel=1e-3),
        "hot_files_last": pytest.approx(grown - shared + 2 * file, rel=1e-3),
        "from_nothing": pytest.approx(grown + 2 * file, rel=1e-3),
    }
    assert figures["compactions"] == 0


def test_the_results_become_a_page(tmp_path: Path) -> None:
    history = from_trace(TRACES / "jedi-language-server.jsonl.gz")
    some = History(history.name, history.start, history.commits[:20])
    sizes = {"bytes_per_token": 3.5, "block": BLOCK, "overlay_share": 0.25}
    replayed = {"name": some.name, "contexts": [replay(some, 16_384)]}
    result = {"benchmark": "replay"} | machine.describe(1) | sizes | {"histories": [replayed]}

    written = json.loads(results.write(result, tmp_path).read_text())
    page = report.write(tmp_path).read_text()

    assert written == result
    assert "A context of 16,384 tokens" in page
    assert page.count("| pappasam/jedi-language-server |") == 2
