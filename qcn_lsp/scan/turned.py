"""Characters that turn the order of a line around, so that code reads otherwise than it runs.

Trojan Source, CVE-2021-42574. Languages written from right to left need none of them in source.
"""

import re
from collections.abc import Iterator

from qcn_lsp.scan.finding import Finding, Proof, Severity

_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]+")


def turned_lines(text: str) -> Iterator[Finding]:
    """Yield each run of such characters in a text of any language."""
    for found in _TURNING.finditer(text):
        yield Finding(
            rule="text.turned",
            cwe=1007,
            severity=Severity.WARNING,
            proof=Proof.WITNESS,
            message="A character here turns the order of the line around.",
            rationale="What a reader sees is not what runs. Write it as an escape.",
            start=found.start(),
            end=found.end(),
        )
