"""How a project's tests are found, and what is made of what their runners write."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proving_support import write

from qcn_lsp.proving.logs import fenced, plain
from qcn_lsp.proving.reports import by_test
from qcn_lsp.proving.suites import TestSuite, find_suites
from qcn_lsp.proving.toolchains import toolchain
from qcn_lsp.proving.touching import by_coverage, by_imports

REPORT = "/tmp/report.xml"


@pytest.mark.parametrize(
    ("files", "runners"),
    [
        ({"app.py": ""}, []),
        ({"pytest.ini": ""}, ["pytest"]),
        ({"tests/conftest.py": ""}, ["pytest"]),
        ({"pyproject.toml": "[tool.pytest.ini_options]\n"}, ["pytest"]),
        ({"setup.cfg": "[tool:pytest]\n"}, ["pytest"]),
        ({"pyproject.toml": "[[[", "tests/test_a.py": ""}, ["unittest"]),
        (
            {
                "tests/test_a.py": "",
                ".venv/pyvenv.cfg": "",
                ".venv/lib/python3.12/site-packages/pytest/__init__.py": "",
            },
            ["pytest", "unittest"],
        ),
        ({"package.json": '{"scripts": {"test": "node --test"}}'}, ["node", "npm"]),
        ({"package.json": '{"scripts": {"test": "node --test && tsc"}}'}, ["npm"]),
        ({"package.json": '{"scripts": {"test": "vitest"}}', "a.test.js": "node:test"}, ["npm"]),
        ({"package.json": "{}", "test/a.test.mjs": 'import "node:test"'}, ["node"]),
        ({"package.json": "{}", "test/a.test.js": "describe()"}, []),
        ({"package.json": '{"scripts": {"test": ["node:test"]}}'}, []),
        ({"package.json": '{"scripts": {"test": "echo no test specified && exit 1"}}'}, []),
        ({"package.json": '{"scripts": [1]}'}, []),
        ({"package.json": "[" * 100_000}, []),
        ({"go.mod": ""}, ["go"]),
        ({"Cargo.toml": "", "pytest.ini": ""}, ["pytest", "cargo"]),
        ({"pom.xml": ""}, ["maven"]),
        ({"build.gradle.kts": ""}, ["gradle"]),
    ],
)
def test_a_projects_files_tell_how_its_tests_are_run(
    tmp_path: Path, files: dict[str, str], runners: list[str]
) -> None:
    root = write(tmp_path, files)
    found = find_suites(root)
    assert [suite.runner for suite in found] == runners
    assert all(suite.command(toolchain(root), REPORT) for suite in found)


@pytest.mark.parametrize("name", ["package.json", "pyproject.toml", "go.mod", "conftest.py"])
def test_a_folder_where_a_file_should_be_tells_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert find_suites(tmp_path) == ()


def test_of_several_files_only_those_asked_for_are_run(tmp_path: Path) -> None:
    command = TestSuite("pytest", ("a_test.py",)).command(toolchain(tmp_path), REPORT)
    assert command[-1] == "a_test.py"


def test_a_link_is_no_virtual_environment(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"pyvenv.cfg": "home = /usr/bin\n"})
    root = write(tmp_path / "root", {"node_modules.txt": ""})
    (root / ".venv").symlink_to(elsewhere)
    (root / "node_modules").symlink_to(elsewhere)
    assert toolchain(root).folders == ()


def test_a_report_of_pytest_is_read_by_test() -> None:
    report = (
        b'<testsuites><testsuite><testcase classname="tests.test_a" name="test_x"/>'
        b'<testcase classname="tests.test_a" name="test_y[1]"><failure/></testcase>'
        b'<testcase classname="tests.test_a" name="test_e"/>'
        b'<testcase classname="tests.test_a" name="test_e"><error/></testcase>'
        b'<testcase classname="" name="tests.test_b"><skipped/></testcase></testsuite></testsuites>'
    )
    names = by_test("pytest", report, "")
    assert names is not None
    assert names.passed == {"tests.test_a.test_x"}
    assert names.failed == {"tests.test_a.test_y[1]", "tests.test_a.test_e"}
    assert names.skipped == {".tests.test_b"}


@pytest.mark.parametrize(
    "report",
    [
        None,
        b"",
        b"<testsuites>",
        b"\xff\xfe<\x00a\x00",
        b'<!DOCTYPE a [<!ENTITY b "x">]><testsuites>&b;</testsuites>',
        b'<?xml version="1.0" encoding="utf-99"?><a b=/>',
    ],
)
def test_a_report_that_is_none_names_no_test(report: bytes | None) -> None:
    assert by_test("pytest", report, "") is None


@given(report=st.binary(max_size=200), log=st.text(max_size=200))
def test_no_report_of_any_runner_does_harm(report: bytes, log: str) -> None:
    for runner in ("pytest", "unittest", "node", "go", "cargo", "npm", "maven"):
        by_test(runner, report, log)


def test_what_other_runners_write_is_read_by_test() -> None:
    go = "\n".join(
        json.dumps(event)
        for event in (
            {"Action": "run", "Package": "p", "Test": "TestA"},
            {"Action": "pass", "Package": "p", "Test": "TestA"},
            {"Action": "fail", "Package": "p", "Test": "TestB"},
            {"Action": "pass", "Package": "p"},
        )
    )
    names = by_test("go", None, f"{go}\nnot json\n[]\n")
    assert names is not None
    assert (names.passed, names.failed) == ({"p.TestA"}, {"p.TestB"})
    cargo = "test a::works ... ok\ntest a::breaks ... FAILED\ntest b ... ignored\n"
    names = by_test("cargo", None, cargo)
    assert names is not None
    assert (names.passed, names.failed, names.skipped) == ({"a::works"}, {"a::breaks"}, {"b"})


def test_what_node_writes_is_read_by_test() -> None:
    report = b"""<testsuites>
    <testcase name="adds" classname="test"/>
    <testsuite name="more"><testsuite name="inner">
      <testcase name="adds" classname="test"><failure type="testCodeFailure"/></testcase>
    </testsuite><testcase name="later" classname="test"><skipped/></testcase></testsuite>
    </testsuites>"""
    names = by_test("node", report, "")
    assert names is not None
    assert names.passed == {"adds"}
    assert names.failed == {"more > inner > adds"}
    assert names.skipped == {"more > later"}
    assert by_test("node", b"TAP version 13", "") is None


def test_the_users_own_node_is_shown_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nvm installs it."""
    home = tmp_path / "home"
    version = write(home / ".nvm/versions/node/v22", {"bin/node": "", "lib/node_modules/a": ""})
    (version / "bin" / "node").chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(version / "bin"))
    root = write(tmp_path / "shop", {"package.json": "{}"})
    tools = toolchain(root)
    assert tools.folders == (version / "bin", version / "lib")
    assert tools.path == str(version / "bin")
    # One that the workspace brings is no installation of the user's.
    planted = write(root / "node", {"bin/node": "", "lib/node_modules/a": ""})
    (planted / "bin" / "node").chmod(0o755)
    monkeypatch.setenv("PATH", str(planted / "bin"))
    assert toolchain(root).folders == ()


def test_both_ways_of_python_to_name_a_test_of_unittest_are_read() -> None:
    log = (
        "test_new (test_a.T.test_new) ... ok\n"
        "test_old (test_a.T) ... FAIL\n"
        "test_told (test_a.T.test_told)\nWhat it is for. ... ERROR\n"
    )
    names = by_test("unittest", None, log)
    assert names is not None
    assert names.passed == {"test_a.T.test_new"}
    assert names.failed == {"test_a.T.test_old", "test_a.T.test_told"}


def test_coverage_tells_which_tests_execute_a_changed_line() -> None:
    contexts = {"2": ["", "test_a.test_x"], "3": ["test_a.T.test_y"], "9": ["test_a.test_z"]}
    report = json.dumps({"files": {"app.py": {"contexts": contexts}}}).encode()
    tests = {"tests.test_a.test_x[1]", "tests.test_a.T.test_y", "tests.test_a.test_z"}
    touching = by_coverage(report, {"app.py": {2, 3}, "gone.py": {1}}, tests)
    assert touching == frozenset(tests - {"tests.test_a.test_z"})


@pytest.mark.parametrize("report", [b"", b"[]", b'{"files": {"app.py": 5}}', b"{}", b"[" * 99_999])
def test_a_report_of_coverage_that_is_none_tells_nothing(report: bytes) -> None:
    assert by_coverage(report, {"app.py": {1}}, {"t"}) is None


def test_without_coverage_a_test_touches_what_its_file_names() -> None:
    texts = {"tests/test_a.py": "from pkg import app", "tests/test_b.py": "import apple"}
    tests = {"tests.test_a.test_x", "tests.test_b.test_x"}
    assert by_imports(["pkg/app.py"], tests, texts) == frozenset({"tests.test_a.test_x"})
    assert by_imports(["pkg/__init__.py"], tests, texts) == frozenset({"tests.test_a.test_x"})


@given(output=st.binary(max_size=300))
def test_plain_text_has_no_control_and_no_invisible_character(output: bytes) -> None:
    text = plain(output).replace("\n", "").replace("\t", "")
    kinds = {unicodedata.category(character) for character in text}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


@given(log=st.text(alphabet="`~a\n", max_size=60))
def test_nothing_in_a_log_ends_the_block_it_is_shown_in(log: str) -> None:
    opening, *lines, closing = fenced(log).split("\n")
    assert opening == f"{closing}text"
    assert not any(line.strip().startswith(closing) for line in lines)
