"""The scanner's benchmark: its texts, how a tool is scored, and the aim that was set for it."""

import ast

import pytest

from benchmarks.scanner import LANGUAGES, TOOLS, Case, read_cases, score, wrapped


def case(*, weak: bool, text: str = "a\nb\nc", line: int = 2) -> Case:
    return Case(79, "a weakness", weak=weak, held_out=False, text=text, line=line)


def test_any_finding_on_the_marked_line_counts_and_others_are_counted_apart() -> None:
    cases = [case(weak=True), case(weak=True), case(weak=False), case(weak=False)]
    found = [[(1, 2)], [(3, 3)], [(2, 2), (2, 3)], []]
    told = score(lambda texts, language: found, cases, "python").told()
    assert (told["found"], told["weak"], told["mistaken"], told["safe"]) == (1, 2, 1, 2)
    assert (told["recall"], told["precision"]) == (0.5, 0.5)
    assert told["findings_on_other_lines"] == 1
    assert told["by_weakness"]["CWE-79 a weakness"]["recall"] == 0.5


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_text_has_one_marked_line_and_no_mark_is_scanned(language: str) -> None:
    cases = list(read_cases(language))
    assert {one.held_out for one in cases} == {one.weak for one in cases} == {True, False}
    assert all("#!" not in one.text and "//!" not in one.text for one in cases)


def test_there_are_25_weaknesses_of_python_and_wrapped_ones_are_python_too() -> None:
    cases = list(read_cases("python"))
    assert len({one.name for one in cases}) == 25
    for inner in cases:
        line = inner.text.split("\n")[inner.line - 1].strip()
        for outer in wrapped(inner):
            ast.parse(outer.text)
            assert outer.text.split("\n")[outer.line - 1].strip() == line


def test_it_finds_twice_what_ruff_and_bandit_find_and_is_no_more_often_wrong() -> None:
    cases = list(read_cases("python"))
    told = {name: score(tool, cases, "python").told() for name, tool in TOOLS.items()}
    for peer in ("ruff", "bandit"):
        assert told[peer]["found"] > 20  # it ran
        assert told["qcn"]["recall"] >= 2 * told[peer]["recall"]
        assert told["qcn"]["precision"] >= told[peer]["precision"]
