"""`qcn scan`: what it finds in folders and files, in each format, and its exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from command_support import obeying_modes, qcn, qcn_with_errors_on_a_terminal

TOKEN = "ghp_" + "h7Jk2Lm9Qw4Er6Ty1Ui3Op5As8Df0Gh2Jk4L"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "run.py").write_text(
        "import os\n\n\ndef run(name):\n    '\U0001f600'; os.system('ls ' + name)\n"
    )
    (folder / "lib" / "load.py").write_text("import yaml\r\n\r\nyaml.load(text)\r\n", newline="")
    (folder / "page.js").write_text("element.innerHTML = '';\n")
    (folder / "settings.yml").write_text(f"token: {TOKEN}\n")
    (folder / ".gitignore").write_text("made/\n")
    (folder / "made").mkdir()
    (folder / "made" / "a.py").write_text("eval(x)\n")
    return folder


def scanned(folder: Path, *arguments: str | Path) -> dict[str, Any]:
    done = qcn("scan", "--format", "json", *arguments, cwd=folder)
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_folders_are_scanned_as_far_as_their_rules_let_one(shop: Path) -> None:
    found = scanned(shop)
    places = [(one["path"], one["line"], one["column"], one["rule"]) for one in found["findings"]]
    assert places == [
        ("settings.yml", 1, 8, "secret.github-token"),
        ("lib/load.py", 3, 1, "qcn.python.yaml-load-bare"),
        ("lib/run.py", 5, 10, "qcn.python.shell-built"),
    ]
    assert found["files"] == 5
    assert "made" in {one["path"] for one in found["skipped"]}
    [load] = [one for one in found["findings"] if one["path"] == "lib/load.py"]
    assert (load["cwe"], load["proof"], load["hasFix"]) == (502, "witness", True)
    assert (load["endLine"], load["endColumn"]) == (3, 16)


def test_a_file_that_is_named_is_scanned_whatever_the_rules_say(shop: Path) -> None:
    found = scanned(shop, "made/a.py")
    assert [one["path"] for one in found["findings"]] == ["made/a.py"]
    outside = scanned(shop / "lib", shop / "settings.yml")
    assert [one["path"] for one in outside["findings"]] == [(shop / "settings.yml").as_posix()]


def test_many_files_are_shared_out_and_told_in_their_order(tmp_path: Path) -> None:
    for number in range(90):
        (tmp_path / f"{number:02}.py").write_text(f"x = {number}\neval(y)\n" * (number % 3))
    found = scanned(tmp_path)
    named = [one["path"] for one in found["findings"]]
    assert named == [f"{n:02}.py" for n in range(90) for _ in range(n % 3)]


@pytest.mark.parametrize(
    ("text", "fail_on", "code"),
    [
        ("x = 1\n", None, 0),
        ("eval(x)\n", None, 1),
        ("eval(x)\n", "error", 1),
        ("import hashlib\nhashlib.md5(x)\n", "error", 0),
        ("import hashlib\nhashlib.md5(x)\n", "warning", 1),
        ("host = '0.0.0.0'\n", "warning", 0),
        ("host = '0.0.0.0'\n", "note", 1),
    ],
)
def test_the_exit_code_is_for_the_severity_asked_for(
    tmp_path: Path, text: str, fail_on: str | None, code: int
) -> None:
    (tmp_path / "a.py").write_text(text)
    done = qcn("scan", *(["--fail-on", fail_on] if fail_on else []), cwd=tmp_path)
    assert done.returncode == code, done.stdout


def test_wrong_usage_and_what_cannot_be_scanned_have_codes_of_their_own(shop: Path) -> None:
    assert qcn("scan", "--format", "xml", cwd=shop).returncode == 2
    done = qcn("scan", "nowhere", "lib", cwd=shop)
    assert done.returncode == 3
    assert done.stderr == "qcn: nowhere was not scanned: there is no such file or folder\n"
    assert "lib/run.py:5:10: error:" in done.stdout


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"x = 1\n" * 50_000, "it is longer than 256 KiB"), (b"\0", "it is binary")],
)
def test_a_file_that_is_named_and_not_scanned_is_no_clean_bill(
    shop: Path, content: bytes, why: str
) -> None:
    (shop / "named.py").write_bytes(content)
    (shop / "empty.py").touch()
    done = qcn("scan", "named.py", "empty.py", cwd=shop)
    assert (done.returncode, done.stderr) == (3, f"qcn: named.py was not scanned: {why}\n")
    (shop / "picture.png").write_bytes(b"\x89PNG\0")
    assert qcn("scan", "empty.py", "picture.png", cwd=shop).returncode == 0


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"# caf\xe9\neval(x)\n", "it is not UTF-8"), (b"\xff\xfee", "it is marked as utf-16-le")],
)
def test_a_text_in_no_encoding_that_can_be_told_is_no_clean_bill(
    shop: Path, content: bytes, why: str
) -> None:
    (shop / "lib" / "a.py").write_bytes(content)
    (shop / "notes").write_bytes(b"caf\xe9\n")  # any text may hold a secret
    for asked in (["lib", "notes"], ["lib/a.py", "notes"], ["."]):
        done = qcn("scan", *asked, cwd=shop)
        told = sorted(done.stderr.splitlines())
        assert done.returncode == 3
        assert [re.split(", and| and is not", line)[0] for line in told] == [
            f"qcn: lib/a.py was not scanned: {why}",
            "qcn: notes was not scanned: it is not UTF-8",
        ]


@pytest.mark.parametrize("name", ["picture.jpg", "picture"])
def test_what_is_no_text_is_left_out_without_a_word(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xd8\xff\xe1\x10JFIF\xe9")  # none of its bytes is 0
    for asked in (".", name):
        done = qcn("scan", asked, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")


def test_lines_that_end_as_on_old_macs_are_lines(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"import os\r\rdef f(x):\r    eval(x)\r    exec(x)\r")
    found = scanned(tmp_path)["findings"]
    assert [(one["line"], one["column"]) for one in found] == [(4, 5), (5, 5)]


def test_what_cannot_be_read_is_no_clean_bill(shop: Path) -> None:
    (shop / "lib" / ".gitignore").write_text("a/**/b/**/c/**/d/**/e\n")  # too costly to follow
    done = qcn("scan", "--format", "json", cwd=shop)
    assert done.returncode == 3
    assert "qcn: lib was not scanned: its rules in lib/.gitignore cannot be read" in done.stderr
    assert [one["path"] for one in json.loads(done.stdout)["failed"]] == ["lib"]
    assert qcn("scan", "lib", cwd=shop).returncode == 3


@pytest.mark.parametrize(
    ("closed", "asked"),
    [
        ("lib", "."),
        ("lib", "lib"),
        ("lib", "lib/run.py"),
        ("lib/run.py", "."),
        ("page.js", "page.js"),
    ],
)
def test_what_the_system_does_not_let_it_read_is_no_clean_bill(
    shop: Path, closed: str, asked: str
) -> None:
    (shop / closed).chmod(0)
    try:
        done = qcn("scan", asked, cwd=shop, by=obeying_modes())
    finally:
        (shop / closed).chmod(0o755)
    assert done.returncode == 3
    assert f"qcn: {closed if asked == '.' else asked} was not scanned: " in done.stderr
    assert "Permission denied" in done.stderr


def test_the_text_says_where_what_and_why(shop: Path) -> None:
    done = qcn("scan", cwd=shop)
    assert done.returncode == 1
    assert (
        "lib/load.py:3:1: error: This call builds any Python object that the text names. "
        "[qcn.python.yaml-load-bare, CWE-502]\n    yaml.load(text)\n" in done.stdout
    )
    assert done.stdout.endswith("\n3 findings in 5 files: 3 errors.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no such terminals there")
def test_on_a_terminal_it_shows_how_far_it_is(shop: Path) -> None:
    printed, shown = qcn_with_errors_on_a_terminal("scan", "--format", "json", cwd=shop)
    assert json.loads(printed)["files"] == 5
    assert re.search(r"Scanning \d files", shown)
    assert "Scanning" not in qcn("scan", cwd=shop).stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_no_name_and_no_line_of_a_file_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    (tmp_path / "\x1b[31m\n\u202ename.py").write_text("eval(x)  # \x1b]0;title\x07 \u202e\n")
    done = qcn("scan", cwd=tmp_path)
    assert done.returncode == 1
    assert r"\x1b[31m\n\u202ename.py:1:1: error:" in done.stdout
    assert "[text.turned, CWE-1007]" in done.stdout
    assert r"eval(x)  # \x1b]0;title\x07 \u202e" in done.stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)


def test_sarif_names_rules_places_and_fixes(shop: Path) -> None:
    (shop / "lib" / "a b#é.py").write_text("eval(x)\n")
    done = qcn("scan", "--format", "sarif", cwd=shop)
    assert done.returncode == 1
    log = json.loads(done.stdout)
    assert log["version"] == "2.1.0"
    [run] = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "qcn"
    assert run["columnKind"] == "unicodeCodePoints"
    results = {one["ruleId"]: one for one in run["results"]}
    for result in run["results"]:
        rule = driver["rules"][result["ruleIndex"]]
        assert rule["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert any(tag.startswith("external/cwe/cwe-") for tag in rule["properties"]["tags"])
        assert result["message"]["text"]
        assert result["partialFingerprints"]["qcn/v1"]
    assert len({str(one["partialFingerprints"]) for one in run["results"]}) == len(run["results"])
    shell = results["qcn.python.shell-built"]["locations"][0]["physicalLocation"]
    assert shell["artifactLocation"] == {"uri": "lib/run.py", "uriBaseId": "%SRCROOT%"}
    assert shell["region"] == {"startLine": 5, "startColumn": 10, "endLine": 5, "endColumn": 33}
    [fix] = results["qcn.python.yaml-load-bare"]["fixes"]
    [change] = fix["artifactChanges"]
    assert change["replacements"] == [
        {
            "deletedRegion": {"startLine": 3, "startColumn": 1, "endLine": 3, "endColumn": 10},
            "insertedContent": {"text": "yaml.safe_load"},
        }
    ]
    odd = results["qcn.python.evaluated"]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert odd["uri"] == "lib/a%20b%23%C3%A9.py"
    assert unquote(odd["uri"]) == "lib/a b#é.py"
    notices = run["invocations"][0]["toolExecutionNotifications"]
    assert "made" in str(notices)


def test_what_failed_is_told_in_sarif_too(tmp_path: Path) -> None:
    done = qcn("scan", "--format", "sarif", "nowhere", cwd=tmp_path)
    assert done.returncode == 3
    [invocation] = json.loads(done.stdout)["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is False
    assert "no such file" in invocation["toolExecutionNotifications"][0]["message"]["text"]


@pytest.mark.skipif(sys.platform == "win32", reason="plants shell scripts")
def test_nothing_of_the_folder_is_run_or_obeyed(shop: Path) -> None:
    before = scanned(shop)["findings"]
    for name in ("ruff", "git", "python", "python3"):
        planted = shop / name
        planted.write_text(f"#!/bin/sh\ntouch {shop}/ran\n")
        planted.chmod(0o755)
    for name in ("yaml", "ast_grep_py", "ruff"):
        (shop / f"{name}.py").write_text(f"open({str(shop / 'ran')!r}, 'w')\n")
    (shop / "ruff.toml").write_text('exclude = ["*"]\n')
    (shop / "sgconfig.yml").write_text("ruleDirs: []\n")
    # -P: as the installed command, which has no current folder on its path, unlike `python -m`.
    command = [sys.executable, "-P", "-m", "qcn_lsp.cli", "scan", "--format", "json"]
    environment = {**os.environ, "PATH": f"{shop}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=shop, env=environment, capture_output=True, check=False)
    found = json.loads(done.stdout)["findings"]
    assert [one for one in found if one in before] == before
    assert not (shop / "ran").exists()
