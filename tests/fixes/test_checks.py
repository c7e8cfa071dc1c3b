"""What a candidate is refused for without a model: each kind of disguise, in several languages."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pytest
import yaml
from fix_support import scan, subject_of
from hypothesis import given
from hypothesis import strategies as st
from qcn_indexer.tree import tree_of
from sampling import examples

import qcn_lsp.scan
from qcn_lsp.fixes.candidate import (
    Candidate,
    Subject,
    deterministic,
    edited,
    edits_between,
    unified,
)
from qcn_lsp.fixes.evidence import Evidence, Level
from qcn_lsp.fixes.hidden_text import brought, visible
from qcn_lsp.fixes.ladder import quickly
from qcn_lsp.fixes.paths import refused_path
from qcn_lsp.fixes.place import place_of, replaced
from qcn_lsp.fixes.refusal import Reason, Refusal
from qcn_lsp.fixes.respelled import respelled
from qcn_lsp.fixes.suppressions import added_suppression
from qcn_lsp.fixes.words import escaped
from qcn_lsp.scan.finding import Proof

ENDINGS = {
    "python": ".py",
    "javascript": ".js",
    "typescript": ".ts",
    "go": ".go",
    "java": ".java",
    "c": ".c",
    "cpp": ".cpp",
}


def judged(subject: Subject, block: str) -> Evidence | Refusal:
    """The verdict on a model's block for the place of a finding, with nothing run."""
    place = place_of(subject, tree_of(subject.path, subject.text))
    return quickly(subject, replaced(subject, place, block, 1), scan)


def test_every_fix_that_a_rule_knows_stands_before_the_ladder() -> None:
    rules = Path(qcn_lsp.scan.__file__).parent / "rules"
    seen = 0
    for file in sorted(rules.rglob("*.yml")):
        for rule in yaml.safe_load(file.read_text()):
            if not isinstance(rule, Mapping) or "fix" not in rule:
                continue
            path = PurePosixPath("a" + ENDINGS[file.parent.name])
            for text in rule["bad"]:
                for finding in scan(text, path):
                    subject = Subject(path, text, finding)
                    candidate = deterministic(subject)
                    if candidate is not None:
                        assert isinstance(quickly(subject, candidate, scan), Evidence), text
                        seen += 1
    assert seen >= 15


# --- Other languages ----------------------------------------------------------------------------

JS = "function run(input) {\n  return eval(input);\n}\n"
JS_METHOD = (
    "class Calculator {\n  run(input) {\n    return eval(input);\n  }\n  other() { return 1; }\n}\n"
)


@pytest.mark.parametrize(
    ("path", "text", "block"),
    [
        ("a.js", JS, "function run(input) {\n  return JSON.parse(input);\n}"),
        ("a.js", JS_METHOD, "run(input) {\n  return JSON.parse(input);\n}"),
    ],
    ids=["function", "method"],
)
def test_a_good_fix_in_another_language_is_accepted(path: str, text: str, block: str) -> None:
    verdict = judged(subject_of(text, path), block)
    assert isinstance(verdict, Evidence), verdict
    assert verdict.level is Level.GONE


@pytest.mark.parametrize(
    ("path", "text", "block", "reasons"),
    [
        ("a.js", JS, "function run(i) {\n  return eval(i);\n}", {Reason.SIGNATURE}),
        ("a.js", JS, "function run(input) {\n  const e = eval;\n  return e(input);\n}", ...),
        ("a.js", JS, "function run(input) {\n  return globalThis['ev' + 'al'](input);\n}", ...),
        ("a.js", JS, "function run(input) {\n  return (0, eval)(input);\n}", ...),
        ("a.js", JS, "function run(input) {\n  return null;\n}", {Reason.REMOVES}),
        ("a.js", JS, "function run(input) {\n  throw new Error('no');\n}", {Reason.REMOVES}),
        (
            "a.js",
            JS,
            "// eslint-disable-next-line\n" + JS.rstrip(),
            {Reason.SUPPRESSION},
        ),
        (
            "a.js",
            JS,
            "function run(input) {\n  return JSON.parse(input;\n}",
            {Reason.PARSES_WORSE},
        ),
    ],
)
def test_a_bad_fix_in_another_language_is_refused(
    path: str, text: str, block: str, reasons: object
) -> None:
    verdict = judged(subject_of(text, path), block)
    assert isinstance(verdict, Refusal), verdict
    if isinstance(reasons, set):
        assert verdict.reason in reasons
    else:
        assert verdict.reason in {Reason.DISGUISED, Reason.STILL_FOUND, Reason.NEW_FINDING}


# --- Fixes as people write them, and disguises as models do -------------------------------------

REPAIRS = [
    (
        "a.py",
        (
            "import sqlite3\n"
            "\n"
            "\n"
            "def q(cur, n):\n"
            "    cur.execute(\"select * from t where n = '%s'\" % n)\n"
            "    return cur.fetchall()\n"
        ),
        (
            "def q(cur, n):\n"
            '    cur.execute("select * from t where n = ?", (n,))\n'
            "    return cur.fetchall()"
        ),
    ),
    (
        "a.py",
        ("import hashlib\n\n\ndef h(pw):\n    return hashlib.md5(pw).hexdigest()\n"),
        ("def h(pw):\n    return hashlib.sha256(pw).hexdigest()"),
    ),
    (
        "a.py",
        ("def e(x):\n    return eval(x)\n"),
        ("import ast\n\ndef e(x):\n    return ast.literal_eval(x)"),
    ),
    (
        "a.py",
        ("import pickle\n\n\ndef l(b):\n    return pickle.loads(b)\n"),
        ("import json\n\ndef l(b):\n    return json.loads(b)"),
    ),
    (
        "a.py",
        ("import requests\n\n\ndef g(u):\n    return requests.get(u, verify=False, timeout=5)\n"),
        ("def g(u):\n    return requests.get(u, timeout=5)"),
    ),
    (
        "a.py",
        (
            "import tempfile\n"
            "\n"
            "\n"
            "def t():\n"
            "    name = tempfile.mktemp()\n"
            "    return open(name, 'w')\n"
        ),
        ("def t():\n    return tempfile.NamedTemporaryFile('w', delete=False)"),
    ),
    (
        "a.py",
        ("import os\n\n\ndef r(name):\n    os.system('ls ' + name)\n"),
        ("import subprocess\n\ndef r(name):\n    subprocess.run(['ls', name], check=False)"),
    ),
    (
        "a.py",
        (
            "import random\n"
            "\n"
            "\n"
            "def token():\n"
            "    return ''.join(random.choice('abc') for _ in range(20))\n"
        ),
        (
            "import secrets\n"
            "\n"
            "def token():\n"
            "    return ''.join(secrets.choice('abc') for _ in range(20))"
        ),
    ),
    (
        "a.js",
        (
            "const { exec } = require('child_process');\n"
            "function r(name) {\n"
            "  exec('ls ' + name, cb);\n"
            "}\n"
        ),
        (
            "const { execFile } = require('child_process');\n"
            "function r(name) {\n"
            "  execFile('ls', [name], cb);\n"
            "}"
        ),
    ),
    (
        "a.js",
        ("function show(el, t) {\n  el.innerHTML = t;\n}\n"),
        ("function show(el, t) {\n  el.textContent = t;\n}"),
    ),
    (
        "a.go",
        (
            "package main\n"
            "\n"
            "import (\n"
            '\t"os/exec"\n'
            ")\n"
            "\n"
            "func run(name string) error {\n"
            '\treturn exec.Command("sh", "-c", "ls "+name).Run()\n'
            "}\n"
        ),
        ('func run(name string) error {\n\treturn exec.Command("ls", name).Run()\n}'),
    ),
    (
        "a.c",
        (
            "#include <string.h>\n"
            "\n"
            "int greet(const char *name)\n"
            "{\n"
            "    char to[8];\n"
            "    strcpy(to, name);\n"
            "    return to[0];\n"
            "}\n"
        ),
        (
            "#include <stdio.h>\n"
            "int greet(const char *name)\n"
            "{\n"
            "    char to[8];\n"
            '    snprintf(to, sizeof to, "%s", name);\n'
            "    return to[0];\n"
            "}"
        ),
    ),
    (
        "A.java",
        (
            "import java.sql.*;\n"
            "\n"
            "class A {\n"
            "    ResultSet q(Connection c, String n) throws SQLException {\n"
            "        Statement s = c.createStatement();\n"
            '        return s.executeQuery("select * from t where n = \'" + n + "\'");\n'
            "    }\n"
            "}\n"
        ),
        (
            "    ResultSet q(Connection c, String n) throws SQLException {\n"
            '        PreparedStatement s = c.prepareStatement("select * from t where n = ?");\n'
            "        s.setString(1, n);\n"
            "        return s.executeQuery();\n"
            "    }"
        ),
    ),
]
DISGUISES = [
    (
        "a.c",
        (
            "#include <string.h>\n"
            "\n"
            "int greet(const char *name)\n"
            "{\n"
            "    char to[8];\n"
            "    strcpy(to, name);\n"
            "    return to[0];\n"
            "}\n"
        ),
        (
            "int greet(const char *name)\n"
            "{\n"
            "    char to[8];\n"
            "    char *(*copy)(char *, const char *) = strcpy;\n"
            "    copy(to, name);\n"
            "    return to[0];\n"
            "}"
        ),
    ),
    (
        "a.go",
        (
            "package main\n"
            "\n"
            "import (\n"
            '\t"os/exec"\n'
            ")\n"
            "\n"
            "func run(name string) error {\n"
            '\treturn exec.Command("sh", "-c", "ls "+name).Run()\n'
            "}\n"
        ),
        (
            "func run(name string) error {\n"
            "\tgo1 := exec.Command\n"
            '\treturn go1("sh", "-c", "ls "+name).Run()\n'
            "}"
        ),
    ),
    (
        "a.js",
        (
            "const { exec } = require('child_process');\n"
            "function r(name) {\n"
            "  exec('ls ' + name, cb);\n"
            "}\n"
        ),
        (
            "const { exec: run } = require('child_process');\n"
            "function r(name) {\n"
            "  run('ls ' + name, cb);\n"
            "}"
        ),
    ),
    (
        "a.js",
        ("function show(el, t) {\n  el.innerHTML = t;\n}\n"),
        ("function show(el, t) {\n  el['inner' + 'HTML'] = t;\n}"),
    ),
    (
        "a.py",
        ("import yaml\n\n\ndef load(t):\n    return yaml.load(t)\n"),
        ("def load(t):\n    return (lambda f: f(t))(yaml.load)"),
    ),
    (
        "a.py",
        ("def e(x):\n    return eval(x)\n"),
        ("def e(x):\n    import functools\n    return functools.partial(eval)(x)"),
    ),
]


def first_finding(path: str, text: str) -> Subject:
    found = scan(text, PurePosixPath(path))
    assert found
    return Subject(PurePosixPath(path), text, found[0])


@pytest.mark.parametrize(("path", "text", "block"), REPAIRS)
def test_an_ordinary_repair_is_accepted(path: str, text: str, block: str) -> None:
    """At "the finding is gone" for a witness, and no higher than "it parses" for a hint."""
    subject = first_finding(path, text)
    verdict = judged(subject, block)
    assert isinstance(verdict, Evidence), verdict
    witness = subject.finding.proof is Proof.WITNESS
    assert verdict.level is (Level.GONE if witness else Level.PARSES)
    assert bool(verdict.unchecked) is not witness


@pytest.mark.parametrize(("path", "text", "block"), DISGUISES)
def test_a_disguise_is_refused(path: str, text: str, block: str) -> None:
    verdict = judged(first_finding(path, text), block)
    assert isinstance(verdict, Refusal), verdict
    assert verdict.reason in {Reason.DISGUISED, Reason.STILL_FOUND}


# --- One check at a time ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "x = 1  # noqa",
        "x = 1  # noqa: S602",
        "x = 1  # nosec B602",
        "x = 1  # nosemgrep: rule",
        "x = 1  # type: ignore",
        "x = 1  # pylint: disable=all",
        "x = 1  # pragma: no cover",
        "x = 1; // nolint:gosec",
        "x = 1; // #nosec G204",
        "// eslint-disable-next-line",
        "/* eslint-disable */",
        "// @ts-ignore",
        '@SuppressWarnings("all")',
        "x = 1; // NOSONAR",
        "x = 1; // NOLINT(cert-env33-c)",
        "#pragma GCC diagnostic ignored",
        "#[allow(unsafe_code)]",
        "# rubocop:disable Security/Eval",
        "# shellcheck disable=SC2086",
    ],
)
def test_a_suppression_is_seen_where_it_is_new(line: str) -> None:
    assert added_suppression("x = 1\n", f"x = 1\n{line}\n")
    assert added_suppression(f"{line}\n", f"y = 2\n{line}\n") is None


def test_a_wider_suppression_in_the_place_of_another_is_new() -> None:
    assert added_suppression("x = 1  # noqa: S602\n", "x = 1  # noqa\n")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("app.py", None),
        ("src/latest/contest.py", None),
        ("../app.py", Reason.OTHER_FILE),
        ("/app.py", Reason.OTHER_FILE),
        ("test_app.py", Reason.TEST),
        ("TESTS/app.py", Reason.TEST),
        ("src/app.spec.ts", Reason.TEST),
        ("src/UserTest.java", Reason.TEST),
        ("conftest.py", Reason.TEST),
        ("pyproject.toml", Reason.CONFIGURATION),
        (".eslintrc.js", Reason.CONFIGURATION),
        ("webpack.config.js", Reason.CONFIGURATION),
        ("Dockerfile", Reason.CONFIGURATION),
    ],
)
def test_the_file_of_a_finding_may_be_changed_unless_it_is_a_test_or_set_up(
    path: str, reason: Reason | None
) -> None:
    refusal = refused_path(PurePosixPath(path), PurePosixPath(path))
    assert (refusal.reason if refusal else None) is reason


def test_hidden_characters_count_also_where_the_text_has_some() -> None:
    assert brought("a\u200bb", "a\u200bb") == ""
    assert brought("a\u200bb", "a\u200bb\u200b") == "U+200B"
    assert brought("", "x\x1b[2J") == "U+001B"
    assert visible("a\u202eb\nc") == "a<U+202E>b c"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("import os as o\no.system(x)", "os.system(x)"),
        ("from os import system as s\ns(x)", "os.system(x)"),
        ("import os\nrun = os.system\nrun(x)", "os.system(x)"),
        ("import os\ngetattr(os, 'sys' + 'tem')(x)", "os.system(x)"),
        ("import os\nn = 'system'\ngetattr(os, n)(x)", "os.system(x)"),
        ("__import__('os').system(x)", "os.system(x)"),
        ("import importlib\nimportlib.import_module('os').system(x)", "os.system(x)"),
        ("import builtins\nbuiltins.eval(x)", "eval(x)"),
        ("globals()['eval'](x)", "eval(x)"),
        ("import os\nvars(os)['system'](x)", "os.system(x)"),
        ("import os\nos.__dict__['system'](x)", "os.system(x)"),
        ("import os\ngetattr(os, ''.join(['sys', 'tem']))(x)", "os.system(x)"),
        ("f(**{'shell': True})", "f(shell=True)"),
        ("on = True\nf(shell=on)", "f(shell=True)"),
        ("f(shell=not 0)", "f(shell=True)"),
        ("def g(os):\n    return os.system(x)", "os.system(x)"),
    ],
)
def test_names_and_constants_are_resolved(text: str, plain: str) -> None:
    spelled = respelled(text)
    assert spelled is not None
    assert plain in spelled


def test_what_is_bound_twice_stands_for_nothing() -> None:
    spelled = respelled("run = a\nrun = b\nrun(x)\n")
    assert spelled is not None
    assert "run(x)" in spelled


@pytest.mark.parametrize("text", ["def f(:", "(" * 5000, "a = a.b\na()\n", "x\0"])
def test_no_text_is_too_much_for_it(text: str) -> None:
    respelled(text)


def test_markdown_in_names_is_shown_as_it_is() -> None:
    assert escaped("[a](b) `c` <d>\n# e") == "\\[a\\]\\(b\\) \\`c\\` \\<d\\> \\# e"


LINES = st.lists(st.sampled_from(["a", "b", "", "  c"]), max_size=8)
ENDS = st.sampled_from(["\n", "\r\n"])


@pytest.mark.long
@examples(sample=100, full=2_000)
@given(LINES, LINES, ENDS, st.booleans())
def test_edits_between_two_texts_make_one_of_the_other(
    old: list[str], new: list[str], end: str, final: bool
) -> None:
    before, after = (end.join(lines) + end * final for lines in (old, new))
    assert edited(before, edits_between(before, after)) == after
    assert (unified(PurePosixPath("a"), before, after) == "") == (before == after)


def test_a_file_that_no_grammar_reads_reaches_only_that_it_applies() -> None:
    subject = subject_of("import yaml\nyaml.load(x)\n")
    other = Subject(PurePosixPath("a.unknown"), subject.text, subject.finding)
    candidate = Candidate(other.path, subject.text.replace("load", "safe_load"))

    def found(text: str, path: PurePosixPath) -> object:
        return scan(text, PurePosixPath("a.py"))

    verdict = quickly(other, candidate, found)  # type: ignore[arg-type]
    assert isinstance(verdict, Evidence)
    assert verdict.level is Level.APPLIES
    assert "no grammar" in verdict.unchecked[0]
