"""How a fix is told to a person: a title, Markdown, and plain lines; untrusted text is escaped."""

import re

from qcn_lsp.fixes.attempts import Accepted, Outcome
from qcn_lsp.fixes.evidence import Evidence, Level
from qcn_lsp.fixes.hidden_text import visible
from qcn_lsp.scan.finding import Finding

LONGEST_TITLE = 140
TO_BE_FOUND = " (looked for, and checked, when chosen)"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>&~])")
_LEVELS = {
    Level.APPLIES: "it applies",
    Level.PARSES: "it parses",
    Level.GONE: "the finding is gone",
    Level.TESTS: "the finding is gone and the project's tests pass",
    Level.EXPLOIT: "an exploit test fails before and passes after",
}


def level_words(evidence: Evidence) -> str:
    """Return the level that was reached, in words, with the tests that passed."""
    words = _LEVELS[evidence.level]
    if (tests := evidence.tests) is not None:
        count = f"{tests.passed} tests pass" if tests.passed else "the tests pass"
        touch = "" if tests.touching is None else f", {tests.touching} of them touch the change"
        words += f" ({count}{touch})"
    return words


def unchecked_words(evidence: Evidence) -> str:
    """Return what was not checked, in one line, or nothing."""
    return "; ".join(visible(one) for one in evidence.unchecked)


def title(finding: Finding, evidence: Evidence | None = None, *, tail: str = TO_BE_FOUND) -> str:
    """Return an action's title: what is fixed, the level reached, and what stands out.

    Without evidence the fix is still to be found, as `tail` says.
    """
    what = f"Fix CWE-{finding.cwe}: {visible(finding.message).rstrip('.')}"
    if evidence is not None:
        tail = f" ({level_words(evidence)}{_not_run(evidence)})"
    return _cut(what, tail)


def _not_run(evidence: Evidence) -> str:
    return "; tests not run" if evidence.tests is None else ""


def _cut(what: str, tail: str) -> str:
    room = LONGEST_TITLE - len(tail)
    return (what if len(what) <= room else what[: room - 1] + "…") + tail


def documentation(finding: Finding, accepted: Accepted) -> str:
    """Return Markdown: what the fix has shown and what it has not."""
    evidence = accepted.evidence
    lines = [
        f"**{escaped(finding.message)}** ({escaped(finding.rule)}, CWE-{finding.cwe})",
        "",
        f"By {accepted.candidate.origin}. Shown: {escaped(level_words(evidence))}.",
    ]
    if evidence.unchecked:
        lines += ["", "Not checked:", ""]
        lines += [f"- {escaped(one)}" for one in evidence.unchecked]
    return "\n".join(lines)


def no_fix(outcome: Outcome) -> list[str]:
    """Return plain lines: that no acceptable fix was found, and what was tried."""
    lines = ["No acceptable fix found."]
    lines += [f"{one.origin}: {visible(one.refusal.sentence)}" for one in outcome.tried]
    if outcome.no_model:
        lines.append(f"No model: {visible(outcome.no_model).rstrip('.')}.")
    return lines


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    return _MARKDOWN.sub(r"\\\1", visible(text))
