"""What a history says was written, and decoding it with and without drafts, on a small model."""

import itertools
import json
from pathlib import Path, PurePosixPath

import pytest
from engine_support import write_model
from one_file_history import NEW, OLD, repository_of

from benchmarks import lookup, report, results
from benchmarks.histories import Change, Commit, History
from benchmarks.rewrites import AROUND, Written, some, written

A, B = PurePosixPath("a.py"), PurePosixPath("b.py")


def history(*changes: Change) -> History:
    return History("made up", {A: OLD, B: "b = 1\n"}, (Commit(0.0, changes),))


def test_a_change_is_typed_between_what_is_around_it_and_rewritten_behind_what_was() -> None:
    cases = written(history(Change(A, NEW)))
    typed, rewrite = cases
    assert (typed.kind, typed.text) == ("typed", "line_20 = twenty()\nadded = True\n")
    assert typed.front == ((B, "b = 1\n"),)
    assert rewrite.front == ((B, "b = 1\n"), (A, OLD))
    assert rewrite.text.count("\n") == 2 * AROUND + 2
    assert typed.text in rewrite.text
    for case in cases:
        assert case.prefix + case.text + case.suffix == NEW


def test_new_files_tools_work_and_other_languages_are_no_cases() -> None:
    notes, new = PurePosixPath("notes.txt"), PurePosixPath("new.py")
    long = OLD + "x = 1\n" * 100
    changes = (Change(A, long), Change(B, None), Change(notes, "n\n"), Change(new, "m = 1\n"))
    assert written(history(*changes)) == []


def test_a_later_commit_sees_what_an_earlier_one_left() -> None:
    commits = (Commit(0.0, (Change(A, NEW),)), Commit(1.0, (Change(A, OLD),)))
    _, _, typed, rewrite = written(History("made up", {A: OLD}, commits))
    assert typed.text == "line_20 = 20\n"
    assert rewrite.front == ((A, NEW),)


def test_the_same_cases_are_drawn_each_time() -> None:
    cases = [Written("typed", A, (), str(n), "x\n", "") for n in range(50)]
    assert some(cases, 5, "typed") == some(list(cases), 5, "typed")
    assert some(cases, 5, "rewrite") == []


def test_both_ways_decode_the_same_and_become_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "NANO", write_model(tmp_path / "small"))
    monkeypatch.setattr(lookup, "PROMPT_TOKENS", 600)
    monkeypatch.setattr(lookup, "MOST_TOKENS", 60)
    texts = OLD, NEW, NEW.replace("line_3 =", "line_three =")
    folder = repository_of(tmp_path / "repository", *texts)

    result = lookup.run(1, quick=True, repository=folder)

    assert tuple(result["kinds"]) == lookup.KINDS
    for kind, figures in result["kinds"].items():
        samples = figures["texts"] * lookup.QUICK_ROUNDS
        assert figures["ratio"]["samples"] == figures["plain"]["samples"] == samples, kind
        assert 0 <= figures["accepted_tokens"] <= figures["drafted_tokens"]
        assert figures["tokens"] <= 60 * figures["texts"]
    rewritten = result["kinds"]["rewrite"]
    assert rewritten["accepted_tokens"] > rewritten["tokens"] / 5
    assert json.loads(results.write(result, tmp_path).read_text()) == result
    page = report.write(tmp_path).read_text()
    rows = [f"| {report.LOOKUP_KINDS[kind]} | " for kind in lookup.KINDS]
    assert all(row in page for row in rows)
    assert [page.index(one) < page.index(other) for one, other in itertools.pairwise(rows)] == [
        True
    ] * (len(rows) - 1)
