"""Scanning a text: what is found once, what cannot be silenced, and that nothing brings it down."""

import os
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qcn_indexer.secrets import secrets_in
from sampling import examples

from qcn_lsp.scan.finding import Finding, Proof, identity
from qcn_lsp.scan.grammars import BY_LANGUAGE
from qcn_lsp.scan.ruff import MEANINGS
from qcn_lsp.scan.rules import folders, rules_of
from qcn_lsp.scan.scanner import LONGEST, scan_text

SHELL = "import os\ndef f(x):\n    os.system('ls ' + x){}\n"


def rules(text: str, language: str = "python") -> list[str]:
    return [finding.rule for finding in scan_text(text, language)]


def marked(text: str, language: str = "python") -> list[str]:
    return [text[finding.start : finding.end] for finding in scan_text(text, language)]


# --- One weakness is one finding ------------------------------------------------------------------


def test_what_ruff_and_a_rule_of_ours_see_is_told_once_by_the_one_that_proves_more() -> None:
    [finding] = scan_text(SHELL.format(""), "python")
    assert (finding.rule, finding.cwe) == ("qcn.python.shell-built", 78)
    assert finding.proof is Proof.WITNESS


def test_what_is_made_in_one_line_and_used_in_another_is_told_once() -> None:
    text = "def f(c, n):\n    q = f\"SELECT a FROM t WHERE n = '{n}'\"\n    c.execute(q)\n"
    assert marked(text) == ["c.execute(q)"]


def test_what_only_ruff_sees_is_told_with_its_number() -> None:
    [finding] = scan_text("import telnetlib\ntelnetlib.Telnet('a')\n", "python")
    assert (finding.rule, finding.cwe) == ("ruff.S312", 319)


def test_findings_come_in_the_order_of_the_text() -> None:
    text = "import hashlib, yaml\nyaml.load(x)\nhashlib.md5(x)\neval(x)\n"
    starts = [finding.start for finding in scan_text(text, "python")]
    assert starts == sorted(starts)
    assert len(starts) == 3


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_places_count_characters_whatever_stands_in_front(line_end: str) -> None:
    text = line_end.join(
        ["# \U0001f600 é", "s = '\U0001f600'; import telnetlib as t", "t.Telnet(s)"]
    )
    assert marked(text)[-1] == "t.Telnet(s)"
    text = "x = '\U0001f600'; import os; os.system(f'\U0001f600 {x()}')" + line_end
    assert marked(text) == ["os.system(f'\U0001f600 {x()}')"]


def test_a_secret_is_found_in_any_language_and_only_it_is_marked() -> None:
    token = "ghp_" + "h7Jk2Lm9Qw4Er6Ty1Ui3Op5As8Df0Gh2Jk4L"
    for language in ("python", "yaml", None):
        text = f"t: '{token}'" if language != "python" else f"t = '{token}'"
        [finding] = scan_text(text, language)
        assert (finding.rule, finding.cwe) == ("secret.github-token", 798)
        assert text[finding.start : finding.end] == token
        assert [text[one.start : one.end] for one in secrets_in(text)] == [token]


def test_what_turns_a_line_around_is_found_in_any_language() -> None:
    text = "if level != 'none\u202e\u2066': # admin\u2069\u2066' and level != 'user"
    for language in ("python", "go", "yaml"):
        assert rules(text, language) == ["text.turned"] * 2
    assert rules("s = 'שלום'  # \u05d0", "python") == []


def test_a_findings_identity_stays_when_it_moves_and_differs_from_its_likes() -> None:
    text = "import hashlib\nhashlib.md5(a)\nhashlib.md5(a)\n"
    first, second = scan_text(text, "python")
    assert identity(text, first) != identity(text, second)
    moved = "import os\n\n" + text
    assert identity(moved, scan_text(moved, "python")[0]) == identity(text, first)


# --- Nothing of the workspace silences or configures it -------------------------------------------


@pytest.mark.parametrize(
    "comment",
    ["noqa", "noqa: S605", "nosec", "nosec B605", "nosemgrep", "ast-grep-ignore", "type: ignore"],
)
def test_no_comment_silences_a_finding(comment: str) -> None:
    assert rules(SHELL.format(f"  # {comment}")) == rules(SHELL.format(""))
    above = SHELL.format("").replace("    os", f"    # {comment}\n    os")
    assert rules(above) == rules(SHELL.format(""))


@pytest.mark.parametrize("comment", ["ruff: noqa", "flake8: noqa", "ruff: noqa: S312", "nosec"])
def test_no_comment_silences_a_file(comment: str) -> None:
    text = "import telnetlib\ntelnetlib.Telnet('a')\n"
    assert rules(f"# {comment}\n{text}") == rules(text) == ["ruff.S312"]


def test_no_comment_silences_other_languages() -> None:
    text = "function f(t) {\n  // ast-grep-ignore\n  return eval(t); // nosemgrep, nosec\n}"
    assert rules(text, "javascript") == ["qcn.javascript.evaluated"]


def test_no_file_configures_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import telnetlib, hashlib\ntelnetlib.Telnet('a')\nhashlib.md5(x)\n"
    before = rules(text)
    for name in ("ruff.toml", ".ruff.toml"):
        (tmp_path / name).write_text('exclude = ["*"]\n[lint]\nselect = []\nignore = ["ALL"]\n')
    (tmp_path / "pyproject.toml").write_text('[tool.ruff]\nexclude = ["*"]\n')
    (tmp_path / "sgconfig.yml").write_text("ruleDirs: []\n")
    (tmp_path / ".bandit").write_text("[bandit]\nskips = B324\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUFF_CONFIG", str(tmp_path / "ruff.toml"))
    assert rules(text) == before
    assert len(before) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="plants shell scripts")
def test_nothing_planted_on_the_path_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ruff", "git", "python", "python3", "sh"):
        planted = tmp_path / name
        planted.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        planted.chmod(planted.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    assert rules("import telnetlib\ntelnetlib.Telnet('a')\n") == ["ruff.S312"]
    assert not (tmp_path / "ran").exists()


# --- Any text ------------------------------------------------------------------------------------

PIECES = [text for folder in folders() for rule in rules_of(folder) for text in rule.bad[:1]]


@st.composite
def mangled(draw: st.DrawFn) -> str:
    """Draw cases of rules that were cut, repeated and put together, with other text between."""
    parts = draw(st.lists(st.sampled_from(PIECES) | st.text(max_size=20), max_size=4))
    text = "\n".join(parts)
    start = draw(st.integers(0, len(text)))
    return text[start : draw(st.integers(start, len(text)))]


@pytest.mark.long
@examples(sample=60, full=2000)
@given(text=mangled(), language=st.sampled_from([*sorted(BY_LANGUAGE), "yaml", None]))
def test_any_text_is_scanned_and_findings_lie_in_it(text: str, language: str | None) -> None:
    findings = scan_text(text, language)
    assert list(findings) == sorted(findings, key=lambda one: (one.start, one.end, one.rule))
    for finding in findings:
        assert_sound(finding, text)


def assert_sound(finding: Finding, text: str) -> None:
    assert 0 <= finding.start < finding.end <= len(text)
    for edit in finding.fix:
        assert 0 <= edit.start <= edit.end <= len(text)


ODD = [
    "",
    "\0" * 9,
    "a\0b",
    "eval(x) # \ud800",
    "\ufeffeval(x)",
    "x" * (LONGEST + 1),
    "\r\r\n\x0c\u2028",
]
DEEP = [
    "eval(" + "(" * 3000 + "a" + ")" * 3000 + ")",
    "eval(a" + "+a" * 3000 + ")",
    "import os\nos.system('a'" + "+a" * 3000 + ")",
    "f(" * 3000 + ")" * 3000 + " # eval(",
]


@pytest.mark.parametrize("text", ODD + DEEP)
def test_odd_texts_are_no_error(text: str) -> None:
    for language in (*BY_LANGUAGE, None):
        for finding in scan_text(text, language):
            assert_sound(finding, text)


def test_a_text_that_is_too_long_has_no_findings() -> None:
    assert scan_text("eval(x)\n" + "#" * LONGEST, "python") == ()
    assert scan_text("eval(x) #" + "y" * 100_000, "python") != ()


def test_broken_code_is_scanned_as_far_as_it_is_understood() -> None:
    assert "qcn.python.evaluated" in rules("def f(t:\n    pass\n\ndef g(t):\n    return eval(t)\n")


def test_what_ruff_tells_is_in_the_table_and_each_has_a_weakness() -> None:
    assert all(code.startswith("S") and meaning.cwe > 0 for code, meaning in MEANINGS.items())
    assert not {"S101", "S110", "S603", "S607", "S311"} & set(MEANINGS)
