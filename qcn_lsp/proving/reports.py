"""What test runners tell, by test. Their reports are written by untrusted programs.

A report decides nothing about the sandbox: at worst a candidate's own code claims that its tests
passed. So names are compared with those of the baseline, never believed to be complete.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.etree import ElementTree

MAX_NAMES = 50_000
_UNITTEST = re.compile(
    r"^(\w+) \(([\w.]+)\)(?:\n.*)? \.\.\. (ok|FAIL|ERROR|skipped|expected failure)", re.MULTILINE
)
_CARGO = re.compile(r"^test (\S+) \.\.\. (ok|FAILED|ignored)", re.MULTILINE)
_GO = {"pass": "passed", "fail": "failed", "skip": "skipped"}


@dataclass
class Names:
    """Tests by how they ended."""

    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)

    def sort(self, outcomes: Iterator[tuple[str, str]]) -> "Names":
        """Take (name, `passed`, `failed` or `skipped`); what failed once has failed."""
        for (name, outcome), _ in zip(outcomes, range(MAX_NAMES), strict=False):
            getattr(self, outcome).add(name)
        self.passed -= self.failed
        return self


def by_test(runner: str, report: bytes | None, log: str) -> Names | None:
    """Return the tests that a runner told of; None where it names none."""
    if runner in ("pytest", "node"):
        root = None if report is None else _xml(report)
        if root is None:
            return None
        return Names().sort(_of_pytest(root) if runner == "pytest" else _of_node(root))
    if runner == "unittest":
        words = {"ok": "passed", "expected failure": "passed", "skipped": "skipped"}
        return Names().sort(
            (f"{found[2].removesuffix(f'.{found[1]}')}.{found[1]}", words.get(found[3], "failed"))
            for found in _UNITTEST.finditer(log)
        )
    if runner == "cargo":
        words = {"ok": "passed", "ignored": "skipped"}
        return Names().sort(
            (found[1], words.get(found[2], "failed")) for found in _CARGO.finditer(log)
        )
    return Names().sort(_of_go(log)) if runner == "go" else None


def _of_go(log: str) -> Iterator[tuple[str, str]]:
    for line in log.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and event.get("Test") and event.get("Action") in _GO:
            yield f"{event.get('Package')}.{event['Test']}", _GO[event["Action"]]


def _xml(report: bytes) -> ElementTree.Element | None:
    """Read JUnit's form. A report with a document type, and so with entities, is none."""
    text = report.decode("utf-8", "replace")
    if "<!DOCTYPE" in text:
        return None
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError):
        return None


def _of_pytest(report: ElementTree.Element) -> Iterator[tuple[str, str]]:
    for case in report.iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}"
        yield name, _outcome({part.tag for part in case})


def _of_node(report: ElementTree.Element) -> Iterator[tuple[str, str]]:
    """Tests by their names behind those of the suites that they are in."""
    pending = [(report, "")]
    while pending:
        inside, prefix = pending.pop()
        for part in inside:
            name = prefix + part.get("name", "")
            if part.tag == "testcase":
                yield name, _outcome({one.tag for one in part})
            elif part.tag == "testsuite":
                pending.append((part, f"{name} > "))


def _outcome(parts: set[str]) -> str:
    if parts & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in parts else "passed"
