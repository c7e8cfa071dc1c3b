"""Fixes in texts of unusual form: byte order marks, line ends, very long lines."""

from pathlib import PurePosixPath

import pytest
from fix_support import scan, subject_of
from qcn_indexer.tree import tree_of

from qcn_lsp.fixes.candidate import Candidate, deterministic, edited, edits_between
from qcn_lsp.fixes.evidence import Evidence
from qcn_lsp.fixes.imports import with_imports
from qcn_lsp.fixes.ladder import quickly
from qcn_lsp.fixes.place import place_of, replaced
from qcn_lsp.fixes.prompt import LONGEST_LINE, Surroundings, fix_request

WEAK = "import yaml\n\n\ndef load(text):\n    return yaml.load(text, Loader=yaml.Loader)\n"
WIDE = "NOTE = '🙂é'\n"
FORMS = {
    "as it is": lambda text: text,
    "windows": lambda text: text.replace("\n", "\r\n"),
    "tabs": lambda text: text.replace("    ", "\t"),
    "no last line end": lambda text: text.rstrip("\n"),
    "byte order mark": lambda text: "\ufeff" + text,
    "wide characters": lambda text: WIDE + text.replace("text):", "text):  # 🙂"),
    "form feed": lambda text: text.replace("\n\n\n", "\n\n\x0c\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_rules_fix_changes_nothing_else(form: str) -> None:
    text = FORMS[form](WEAK)
    subject = subject_of(text)
    candidate = deterministic(subject)
    assert candidate is not None
    assert isinstance(quickly(subject, candidate, scan), Evidence)
    assert candidate.text == text.replace("yaml.Loader", "yaml.SafeLoader")


@pytest.mark.parametrize("form", FORMS)
def test_a_models_fix_changes_nothing_else(form: str) -> None:
    text = FORMS[form](WEAK)
    subject = subject_of(text)
    place = place_of(subject, tree_of(subject.path, text))
    block = "def load(text):\n    return yaml.safe_load(text)\n"
    candidate = replaced(subject, place, block, 1)
    assert isinstance(candidate, Candidate)
    evidence = quickly(subject, candidate, scan)
    assert isinstance(evidence, Evidence), evidence
    safe = text.replace("yaml.load(text, Loader=yaml.Loader)", "yaml.safe_load(text)")
    assert candidate.text == safe.replace("  # 🙂", "")
    assert edited(text, edits_between(text, candidate.text)) == candidate.text


@pytest.mark.parametrize(
    "deep",
    [
        " + ".join(['"a"'] * 3_000),
        "(" * 900 + "1" + ")" * 900,
        "f(" * 900 + ")" * 900,
        "a" + ".b" * 900,
        "lambda a=" + "(" * 900 + "1" + ")" * 900 + ": a",
    ],
    ids=["strings", "parentheses", "calls", "attributes", "parameters"],
)
def test_code_that_is_nested_deeply_is_judged_all_the_same(deep: str) -> None:
    subject = subject_of(f"{WEAK}\n\nx = {deep}\n\n\ndef f(a={deep}):\n    return a\n")
    candidate = deterministic(subject)
    assert candidate is not None
    assert isinstance(quickly(subject, candidate, scan), Evidence)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeffx = 1\n", "\ufeffimport os\nx = 1\n"),
        ("\ufeff", "\ufeffimport os\n"),
        ("", "import os\n"),
        ("\ufeffimport re\r\nx = 1\r\n", "\ufeffimport re\r\nimport os\r\nx = 1\r\n"),
        ("import re", "import re\r\nimport os"),
    ],
)
def test_a_byte_order_mark_stays_in_front_of_imports(text: str, expected: str) -> None:
    tree = tree_of(PurePosixPath("a.py"), text)
    line_end = "\r\n" if "\r\n" in expected else "\n"
    assert with_imports(tree, text, ["import os"], line_end) == expected


def test_of_a_very_long_line_the_model_sees_what_is_near() -> None:
    long = "a = '" + "x" * 200_000 + "'; "
    text = f"import yaml\n{long}b = yaml.load(c, Loader=yaml.Loader); {long}\n"
    subject = subject_of(text)
    place = place_of(subject, tree_of(subject.path, text))
    question = fix_request(subject, place, Surroundings()).messages[-1].content
    assert "line 2" in question
    assert "b = yaml.load(c, Loader=yaml.Loader)" in question
    assert len(question) < 2 * LONGEST_LINE + 1_000


def test_old_line_ends_count_as_lines() -> None:
    subject = subject_of(WEAK.replace("\n", "\r"))
    place = place_of(subject, tree_of(subject.path, subject.text))
    first, behind = place.lines(subject.text)
    assert first <= 4 < behind
    assert "line 5" in fix_request(subject, place, Surroundings()).messages[-1].content
