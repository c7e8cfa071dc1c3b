"""What was found in files, as text for a terminal, as JSON, and as SARIF 2.1.0.

Lines and columns count from 1, columns in characters. Names of files and parts of their texts are
somebody else's: in text output whatever a terminal would obey is written as an escape.
"""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any

from qcn_lsp.positions import split_lines, without_line_end
from qcn_lsp.scan.finding import Finding, Proof, Severity, identity
from qcn_lsp.uris import file_uri

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LONGEST_LINE = 160  # shown of a source line


@dataclass(frozen=True)
class ScannedFile:
    """A file that was scanned: `name` as the user would call it, with `/` between its parts."""

    path: Path
    name: str
    text: str
    findings: tuple[Finding, ...]

    @cached_property
    def lines(self) -> list[str]:
        """The text's lines, each with its end."""
        return split_lines(self.text)

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(map(len, self.lines))][:-1]

    def place(self, offset: int) -> tuple[int, int]:
        """Return line and column of a character."""
        line = bisect_right(self._starts, offset) - 1
        return line + 1, offset - self._starts[line] + 1


@dataclass(frozen=True)
class Report:
    """One scan: the files in the order in which they are told, and what was left out, and why."""

    files: Sequence[ScannedFile]
    skipped: Sequence[tuple[str, str]]
    failed: Sequence[tuple[str, str]]
    version: str

    @property
    def findings(self) -> list[tuple[ScannedFile, Finding]]:
        """Every finding with its file."""
        return [(file, finding) for file in self.files for finding in file.findings]


def as_text(report: Report) -> str:
    """Return the report for people; a finding is a line, the source line, and what to do."""
    parts = []
    for file, finding in report.findings:
        line, column = file.place(finding.start)
        source = without_line_end(file.lines[line - 1]).strip()[:_LONGEST_LINE]
        doubt = {Proof.HINT: ", a hint", Proof.UNCONFIRMED: ", unconfirmed"}.get(finding.proof, "")
        parts.append(
            f"{printable(file.name)}:{line}:{column}: {finding.severity}: "
            f"{printable(finding.message)} [{finding.rule}, CWE-{finding.cwe}{doubt}]\n"
            f"    {printable(source)}\n    {printable(finding.rationale)}\n"
        )
    found, files = len(report.findings), len(report.files)
    parts.append(f"{_count(found, 'finding')} in {_count(files, 'file')}{_severities(report)}.\n")
    return "\n".join(parts)


def printable(text: str) -> str:
    """Return a text in which nothing is left that a terminal would obey, or that hides."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def _severities(report: Report) -> str:
    """Return how many findings are of each severity, the worst first; nothing where none are."""
    numbers = Counter(finding.severity for _, finding in report.findings)
    listed = [_count(numbers[one], str(one)) for one in Severity if numbers[one]]
    return f": {', '.join(listed)}" if listed else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def as_json(report: Report) -> str:
    """Return the report as one JSON object."""
    return _dumped(
        {
            "version": report.version,
            "files": len(report.files),
            "findings": [_json_finding(file, finding) for file, finding in report.findings],
            "skipped": [{"path": path, "reason": why} for path, why in report.skipped],
            "failed": [{"path": path, "reason": why} for path, why in report.failed],
        }
    )


def _json_finding(file: ScannedFile, finding: Finding) -> dict[str, Any]:
    line, column = file.place(finding.start)
    end_line, end_column = file.place(finding.end)
    return {
        "id": identity(file.text, finding),
        "path": file.name,
        "line": line,
        "column": column,
        "endLine": end_line,
        "endColumn": end_column,
        "rule": finding.rule,
        "cwe": finding.cwe,
        "severity": finding.severity.value,
        "proof": finding.proof.value,
        "message": finding.message,
        "rationale": finding.rationale,
        "hasFix": bool(finding.fix),
    }


def as_sarif(report: Report) -> str:
    """Return the report as a SARIF 2.1.0 log."""
    rules: dict[str, tuple[int, Finding]] = {}
    for _, finding in report.findings:
        rules.setdefault(finding.rule, (len(rules), finding))
    driver = {
        "name": "qcn",
        "semanticVersion": report.version,
        "rules": [_sarif_rule(finding) for _, finding in rules.values()],
    }
    notices = [
        {"level": level, "message": {"text": why}, "locations": [_sarif_file(path)]}
        for level, listed in (("error", report.failed), ("note", report.skipped))
        for path, why in listed
    ]
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {"executionSuccessful": not report.failed, "toolExecutionNotifications": notices}
        ],
        "results": [
            _sarif_result(file, finding, rules[finding.rule][0])
            for file, finding in report.findings
        ],
    }
    return _dumped({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]})


def _sarif_rule(finding: Finding) -> dict[str, Any]:
    page = f"https://cwe.mitre.org/data/definitions/{finding.cwe}.html"
    return {
        "id": finding.rule,
        "shortDescription": {"text": finding.message},
        "fullDescription": {"text": finding.rationale},
        "help": {"text": f"{finding.rationale} CWE-{finding.cwe}: {page}"},  # GitHub wants one
        "helpUri": page,
        "defaultConfiguration": {"level": finding.severity.value},
        "properties": {
            "tags": ["security", f"external/cwe/cwe-{finding.cwe:03}"],
            "precision": "high" if finding.proof is Proof.WITNESS else "medium",
        },
    }


def _sarif_result(file: ScannedFile, finding: Finding, index: int) -> dict[str, Any]:
    place = _sarif_file(file.name)
    place["physicalLocation"]["region"] = _sarif_region(file, finding.start, finding.end)
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": finding.severity.value,
        "message": {"text": f"{finding.message} {finding.rationale}"},
        "locations": [place],
        "partialFingerprints": {"qcn/v1": _fingerprint(file, finding)},
    }
    if finding.fix:
        replacements = [
            {
                "deletedRegion": _sarif_region(file, edit.start, edit.end),
                "insertedContent": {"text": edit.text},
            }
            for edit in finding.fix
        ]
        artifact = place["physicalLocation"]["artifactLocation"]
        change = {"artifactLocation": artifact, "replacements": replacements}
        result["fixes"] = [
            {"description": {"text": "Remove the weakness."}, "artifactChanges": [change]}
        ]
    return result


def _fingerprint(file: ScannedFile, finding: Finding) -> str:
    whole = f"{file.name}\0{identity(file.text, finding)}".encode("utf-8", "replace")
    return blake2b(whole, digest_size=16).hexdigest()


def _sarif_file(name: str) -> dict[str, Any]:
    # A name that a URI would take for a scheme, or one above this folder, is whole.
    uri = file_uri(Path("/") / name)
    relative = {"uri": uri.removeprefix("file:///"), "uriBaseId": "%SRCROOT%"}
    outside = Path(name).is_absolute()
    return {"physicalLocation": {"artifactLocation": {"uri": uri} if outside else relative}}


def _sarif_region(file: ScannedFile, start: int, end: int) -> dict[str, int]:
    line, column = file.place(start)
    end_line, end_column = file.place(end)
    return {
        "startLine": line,
        "startColumn": column,
        "endLine": end_line,
        "endColumn": end_column,
    }


def _dumped(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": as_text,
    "json": as_json,
    "sarif": as_sarif,
}
