"""`qcn scan --format sarif` as others judge it: the format's schema, and Microsoft's validator.

The validator's rules are those for any log and those of GitHub's code scanning. `make test-sarif`
installs it, with the schema it carries, and runs these. It says nothing of a log that breaks the
schema, so the schema is held against the log apart.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command_support import qcn
from deadlines import DEADLINE_SECONDS

PACKAGE = Path(__file__).parents[2] / "build/sarif/node_modules/@microsoft/sarif-multitool-linux"
VALIDATOR = PACKAGE / "Sarif.Multitool"
pytestmark = pytest.mark.skipif(
    not VALIDATOR.is_file(), reason="the validator is not installed: make test-sarif"
)

ACCEPTED = {"SARIF2005"}  # a tool's page on the web, which we have none of


@pytest.fixture
def log(tmp_path: Path) -> dict[str, Any]:
    """What a scan tells of odd names, of fixes, of what was left out and what failed."""
    folder = tmp_path / "shop"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "a b#é.py").write_text("import yaml\n'\U0001f600'; yaml.load(x)\n")
    (folder / "page.js").write_text("eval(x)\r\nelement.innerHTML = x + y;\r\n", newline="")
    (folder / ".gitignore").write_text("made/\n")
    (folder / "made").mkdir()
    done = qcn("scan", "--format", "sarif", ".", "nowhere", cwd=folder)
    assert done.returncode == 3
    told: dict[str, Any] = json.loads(done.stdout)
    [run] = told["runs"]
    assert {one["ruleId"] for one in run["results"]} >= {
        "qcn.python.yaml-load-bare",
        "qcn.javascript.evaluated",
    }
    assert any("fixes" in one for one in run["results"])
    [invocation] = run["invocations"]
    levels = {one["level"] for one in invocation["toolExecutionNotifications"]}
    assert levels == {"note", "error"}
    return told


def broken_rules(log: dict[str, Any], folder: Path) -> set[str]:
    """Return the ids of the validator's rules that a log breaks."""
    written, answer = folder / "log.sarif", folder / "answer.sarif"
    written.write_text(json.dumps(log), encoding="utf-8")
    subprocess.run(
        [
            VALIDATOR,
            "validate",
            written,
            "--rule-kind",
            "Sarif;Ghas",
            "--output",
            answer,
            "--log",
            "ForceOverwrite",
        ],
        check=True,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
    )
    [run] = json.loads(answer.read_text(encoding="utf-8-sig"))["runs"]
    return {one["ruleId"] for one in run["results"]}


def breaches(log: dict[str, Any]) -> list[str]:
    """Return how a log breaks the schema."""
    schema = json.loads((PACKAGE / "sarif-2.1.0.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(log)]


def test_a_log_keeps_to_the_schema(log: dict[str, Any]) -> None:
    assert breaches(log) == []
    log["runs"][0]["results"][0]["level"] = "dire"
    assert len(breaches(log)) == 1


def test_a_log_breaks_no_rule_of_the_format_or_of_github(
    log: dict[str, Any], tmp_path: Path
) -> None:
    assert broken_rules(log, tmp_path) <= ACCEPTED
    del log["runs"][0]["tool"]["driver"]["rules"][0]["help"]
    del log["runs"][0]["results"][0]["locations"]
    assert broken_rules(log, tmp_path) >= {"GH1015", "GH2012"}
