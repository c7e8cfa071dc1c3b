"""The process that scans: a line of JSON in, `{language, text}`; a line out, the findings.

A process of its own, so that a text which keeps the rules busy, or brings a parser down, costs
nobody anything but that text's findings. It ends when its input does.
"""

import json
import sys
from dataclasses import asdict
from typing import Any

from qcn_lsp.scan.finding import Finding, Proof, Severity, TextEdit
from qcn_lsp.scan.scanner import scan_text


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        found = scan_text(asked["text"], asked["language"])
        sys.stdout.buffer.write(written(found) + b"\n")
        sys.stdout.buffer.flush()


def written(findings: tuple[Finding, ...]) -> bytes:
    """Return findings as a line of JSON."""
    return json.dumps([asdict(finding) for finding in findings]).encode("ascii")


def read(line: bytes) -> tuple[Finding, ...]:
    """Return the findings that `written` wrote."""
    return tuple(_finding(item) for item in json.loads(line))


def _finding(item: dict[str, Any]) -> Finding:
    item["severity"] = Severity(item["severity"])
    item["proof"] = Proof(item["proof"])
    item["fix"] = tuple(TextEdit(**edit) for edit in item["fix"])
    return Finding(**item)


if __name__ == "__main__":
    main()
