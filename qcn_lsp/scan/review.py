"""What a model says of a function's weaknesses, read strictly: one JSON array, each item in form.

A model's finding is unconfirmed: no rule has seen it, and none will say when it is gone. It must
quote the code that it is about, which must stand in the function: what is quoted wrongly is not
underlined somewhere else, the whole answer is refused.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

from qcn_lsp.engine.answers import MalformedAnswer
from qcn_lsp.postprocess.hidden import hidden_characters
from qcn_lsp.scan.finding import Finding, Proof, Severity

RULE = "review.model"
MOST = 10  # findings in one function
LONGEST_MESSAGE, LARGEST_CWE = 300, 9_999
_RATIONALE = "A model says so; it may be wrong, and no rule confirms it."


@dataclass(frozen=True)
class Reviewed:
    """A function that was reviewed; the findings count characters of its text."""

    text: str
    findings: tuple[Finding, ...]

    def at(self, document_text: str) -> tuple[Finding, ...]:
        """Return the findings in a document; none where the function has changed or is twice."""
        if document_text.count(self.text) != 1:
            return ()
        start = document_text.index(self.text)
        return tuple(
            replace(one, start=start + one.start, end=start + one.end) for one in self.findings
        )


def findings_in(answer: str, function: str) -> tuple[Finding, ...]:
    """Return the findings that an answer's block tells of; raises `MalformedAnswer`."""
    try:
        items = json.loads(answer)
    except (ValueError, RecursionError):
        raise MalformedAnswer("The block holds no JSON.") from None
    if not isinstance(items, list) or len(items) > MOST:
        raise MalformedAnswer(f"The block holds no array of at most {MOST} items.")
    found = {_finding(item, function) for item in items}
    return tuple(sorted(found, key=lambda one: (one.start, one.end, one.message)))


def _finding(item: Any, function: str) -> Finding:
    if not isinstance(item, dict) or set(item) != {"code", "cwe", "message"}:
        raise MalformedAnswer("An item holds other than code, cwe and message.")
    code, cwe, message = item["code"], item["cwe"], item["message"]
    if type(cwe) is not int or not 0 < cwe <= LARGEST_CWE:
        raise MalformedAnswer("A cwe is no number of a weakness.")
    if not isinstance(code, str) or not code.strip() or code not in function:
        raise MalformedAnswer("A code is quoted that does not stand in the part.")
    if not isinstance(message, str) or not 0 < len(message) <= LONGEST_MESSAGE:
        raise MalformedAnswer(f"A message is no text of at most {LONGEST_MESSAGE} characters.")
    if "\n" in message or hidden_characters(message):
        raise MalformedAnswer("A message is no single plain line.")
    start = function.index(code)
    return Finding(
        rule=RULE,
        cwe=cwe,
        severity=Severity.NOTE,
        proof=Proof.UNCONFIRMED,
        message=f"Unconfirmed: {message}",
        rationale=_RATIONALE,
        start=start,
        end=start + len(code),
    )
