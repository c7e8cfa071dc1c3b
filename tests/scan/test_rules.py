"""The rules' own cases, and what every rule must say."""

import ast
import hashlib
import re
from typing import Any

import pytest

from qcn_lsp.scan.finding import Finding
from qcn_lsp.scan.grammars import BY_LANGUAGE
from qcn_lsp.scan.matching import matches_in
from qcn_lsp.scan.rules import Rule, folders, rules_of
from qcn_lsp.scan.scanner import scan_text

RULES = [(folder, rule) for folder in folders() for rule in rules_of(folder)]
LANGUAGES = {
    folder: sorted(name for name, grammar in BY_LANGUAGE.items() if folder in grammar.rules)
    for folder in folders()
}
IDS = [rule.id for _, rule in RULES]


def found_by(rule: Rule, text: str, language: str) -> list[Finding]:
    matches = matches_in(text, BY_LANGUAGE[language])
    return [match.finding for match in matches if match.finding.rule == rule.id]


def mended(text: str, finding: Finding) -> str:
    for edit in sorted(finding.fix, key=lambda edit: edit.start, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


@pytest.mark.parametrize(("folder", "rule"), RULES, ids=IDS)
def test_a_rule_finds_its_bad_cases_and_nothing_in_its_good_ones(folder: str, rule: Rule) -> None:
    assert rule.bad
    assert rule.good
    for language in LANGUAGES[folder]:
        for text in rule.bad:
            assert found_by(rule, text, language), (language, text)
        for text in rule.good:
            assert not found_by(rule, text, language), (language, text)


def test_there_are_rules_for_every_language() -> None:
    assert len(RULES) >= 60
    assert {folder for folder, _ in RULES} == {"python", "javascript", "go", "java", "c", "cpp"}
    assert len(set(IDS)) == len(IDS)


@pytest.mark.parametrize(("folder", "rule"), RULES, ids=IDS)
def test_a_rule_says_what_is_wrong_and_what_to_do(folder: str, rule: Rule) -> None:
    assert rule.cwe > 0
    assert re.fullmatch(r"[A-Z`\"].*[.]", rule.message)
    assert len(rule.message) < 100
    assert len(rule.rationale) > 20


FIXED = [
    (folder, rule, text)
    for folder, rule in RULES
    if rule.fixes
    for text in rule.bad
    for language in LANGUAGES[folder][:1]
    if any(one.fix for one in found_by(rule, text, language))
]


@pytest.mark.parametrize(("folder", "rule", "text"), FIXED)
def test_a_fix_removes_the_finding_and_brings_none(folder: str, rule: Rule, text: str) -> None:
    language = LANGUAGES[folder][0]
    before = scan_text(text, language)
    finding = found_by(rule, text, language)[0]
    fixed = mended(text, finding)
    assert fixed != text
    assert len(found_by(rule, fixed, language)) < len(found_by(rule, text, language))
    assert {one.rule for one in scan_text(fixed, language)} <= {one.rule for one in before}
    if language == "python":
        ast.parse(fixed)


def test_every_rule_with_a_fix_has_a_case_that_it_mends() -> None:
    assert {rule.id for _, rule, _ in FIXED} == {rule.id for _, rule in RULES if rule.fixes}


@pytest.mark.parametrize(
    "text",
    [
        "from numpy import random\ntoken = random.choice(5)",
        "import jwt\njwt.decode(t, options={'verify_signature': False})",
        "import jwt\njwt.decode(t, None, algorithms=a, options={'verify_signature': False})",
        "import ssl\nssl._create_unverified_context(cafile=path)",
        "import ssl\ncontext.verify_mode = ssl.CERT_NONE",
        "self.verify = False",
        # What is compared may be no str of ASCII, of which compare_digest raises TypeError.
        "ok = expected == signature",
        "def f(given, api_token: str):\n    return given == api_token",
        "def f(given: str, api_token: bytes):\n    return given == api_token",
        "import hmac\ndef f(given: str = None):\n    return hmac.new(k, m).hexdigest() == given",
        "def f(given: str, api_token: str):\n    if given:\n        given = None\n"
        "    return given == api_token",
        "def f(given: str, api_token: str):\n    given += more\n    return given == api_token",
        "import jwt\ndef f(api_token: bytes):\n    return jwt.encode(p, k) == api_token",
        # No archive but tarfile's takes `filter`.
        "import tarfile, zipfile\nwith zipfile.ZipFile(p) as a:\n    a.extractall(d)",
        "import tarfile\nwith Archive(p) as a:\n    a.extract(m)",
        "import tarfile\ndef unpack(a):\n    a.extract(m)",
        "import tarfile, zipfile\na = tarfile.open(p) if t else zipfile.ZipFile(p)\na.extractall()",
        "import shutil\nshutil.unpack_archive(p, d)",
        "import shutil\nshutil.unpack_archive('a.zip' if z else 'a.tar', d)",
        "import shutil\nshutil.unpack_archive(p, d, format='zip')",
    ],
)
def test_where_a_fix_is_not_safe_there_is_none(text: str) -> None:
    [finding] = [match.finding for match in matches_in(text, BY_LANGUAGE["python"])]
    assert finding.fix == ()


DIGEST = hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("def same(given: str, api_token: str):\n    return given {} api_token", "=="),
        ("def same(given: str, api_token: str):\n    return given {} api_token", "!="),
        (
            "import hashlib\ndef same(given: str, one: str):\n"
            "    api_token = hashlib.sha256(one.encode('utf-8', 'replace')).hexdigest()\n"
            "    return given {} api_token",
            "==",
        ),
    ],
)
@pytest.mark.parametrize("given", ["", "a", "\N{SNOWMAN}", "\ud800", DIGEST])
@pytest.mark.parametrize("token", ["", "a", "\N{SNOWMAN}", "\ud800"])
def test_a_comparison_that_takes_one_time_tells_the_same(
    text: str, operator: str, given: str, token: str
) -> None:
    text = text.format(operator)
    [finding] = [match.finding for match in matches_in(text, BY_LANGUAGE["python"])]
    fixed = mended(text, finding)
    assert "compare_digest" in fixed
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    exec(text, before)
    exec(fixed, after)
    assert after["same"](given, token) == before["same"](given, token)


@pytest.mark.parametrize(
    ("head", "imported"),
    [
        ("", "import secrets\n"),
        ('"""Says what."""\n', '"""Says what."""\nimport secrets\n'),
        ("import random\nrandom.seed(3)\n", "import random\nimport secrets\nrandom.seed(3)\n"),
        ("import random, secrets\n", "import random, secrets\n"),
        ("import random\r", "import random\rimport secrets\r"),
    ],
)
def test_what_a_fix_needs_is_imported_before_any_statement(head: str, imported: str) -> None:
    text = head + "token = random.choice(LETTERS)"
    [finding] = [match.finding for match in matches_in(text, BY_LANGUAGE["python"])]
    fixed = mended(text, finding)
    assert fixed == imported + "token = secrets.choice(LETTERS)"
