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


@pytest.mark.parametrize(
    ("answer", "asked_at", "rest"),
    [
        ("foo(1):\n    go()", "x = foo(‸)\ny", "1"),
        ("foo(1, 2)", "x = foo(1,‸)\ny", " 2"),
        ("foo('a', b)", "x = foo('‸')\ny", "a"),
        ("foo('a', b)", "x = foo('a'‸)\ny", ", b"),
        ("foo('(', b)", "x = foo('(‸')\ny", None),
        ("foo(bar(1), 2)", "x = foo(bar(‸))\ny", "1"),
        ("foo(bar(1), 2)", "x = foo(bar(1)‸)\ny", ", 2"),
        ("foo(bar(1), 2)", "x = foo(‸)\ny", "bar(1), 2"),
        ("foo(1)", "x = foo(1)‸\ny", None),
        ("foo(1):\n    go()", "x = foo(1)‸\ny", ":\n    go()"),  # typed over
        ("foo(1)", "x = foo(1‸)\ny", None),
        ("foo(\n    1,\n)", "x = foo(‸)\ny", None),
        ("foo(1)", "x = foo(‸))\ny", None),
        ("foo(1)", "x = foo(‸]\ny", None),
        ("foo(1)", "x = foo(‸)\nz", None),
        ("foo(1)", "x = foo‸)\ny", None),
    ],
)
def test_brackets_that_the_editor_closes_are_no_departure(
    answer: str, asked_at: str, rest: str | None
) -> None:
    assert found("x = ‸\ny", answer, asked_at) == rest


def test_so_in_front_of_more_than_is_shown() -> None:
    below = "\nyz = 1" * 400
    assert found(f"x = ‸{below}", "foo(1)", f"x = foo(‸){below}") == "1"


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
