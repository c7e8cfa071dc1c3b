"""Answers that are still good, and those that are not."""

from dataclasses import replace

import pytest

from qcn_lsp.features.cache import AnswerCache, Key
from qcn_lsp.features.deletions import Deletions
from qcn_lsp.features.prompt import around
from qcn_lsp.settings import Settings, parse_settings

KEY = Key("file:///a.py", Settings(), ())


def place(marked: str) -> tuple[str, int]:
    return marked.replace("‸", ""), marked.index("‸")


def found(kept_at: str, answer: str, asked_at: str, *, key: Key = KEY) -> str | None:
    cache = AnswerCache()
    cache.add(KEY, around(*place(kept_at)), answer)
    text, cursor = place(asked_at)
    return cache.find(key, text, around(text, cursor))


@pytest.mark.parametrize(
    ("asked_at", "rest"),
    [
        ("x = ‸\ny", "foo(1)"),
        ("x = f‸\ny", "oo(1)"),
        ("x = foo(1‸\ny", ")"),
        ("x = foo(1)‸\ny", None),  # typed to its end: time for a new answer
        ("x = g‸\ny", None),
        ("x =‸\ny", None),
        ("z = ‸\ny", None),
        ("x = ‸\nz", None),  # keyed without what follows, other tools offered stale text here
        ("x = ‸", None),
        ("x = f‸)\ny", None),
    ],
)
def test_an_answer_is_filled_forward_over_what_was_typed(asked_at: str, rest: str | None) -> None:
    assert found("x = ‸\ny", "foo(1)", asked_at) == rest


def test_no_answer_is_an_answer_too() -> None:
    assert found("x = ‸", "", "x = ‸") == ""
    assert found("x = ‸", "", "x = f‸") is None


def test_what_else_the_prompt_held_is_part_of_the_key() -> None:
    other_settings, _ = parse_settings({"completion": {"maxTokens": 3}})
    for key in (
        replace(KEY, uri="file:///b.py"),
        replace(KEY, settings=other_settings),
        replace(KEY, others=("b.py",)),
    ):
        assert found("x = ‸", "1", "x = ‸", key=key) is None


def test_an_answer_is_found_although_the_window_has_moved_since() -> None:
    answer = "value = compute(1)\n" * 30
    text = ("x = 1\n" * 3_000)[:12_200]
    cache, then = AnswerCache(), around(text, len(text))
    cache.add(KEY, then, answer)
    text += answer[:300]
    now = around(text, len(text))
    assert now.start > then.start
    assert cache.find(KEY, text, now) == answer[300:]


@pytest.mark.parametrize(
    ("edits", "deleted"),
    [
        (["x = foo‸"], ""),
        (["x = foo‸", "x = ‸"], "foo"),
        (["x = foo‸", "x = fo‸", "x = f‸", "x = ‸"], "foo"),
        (["x = ‸foo\ny", "x = ‸\ny"], "foo"),
        (["x = foo‸", "x = ‸", "x = ‸"], "foo"),
        (["x = foo‸", "x = ‸", "x = b‸"], ""),
        (["x = f‸", "x = foo‸"], ""),
        (["x = foo‸", "y‸"], ""),
    ],
)
def test_what_was_just_deleted_is_known(edits: list[str], deleted: str) -> None:
    deletions = Deletions()
    last = ""
    for edit in edits:
        last = deletions.before("file:///a.py", around(*place(edit)))
    assert last == deleted
