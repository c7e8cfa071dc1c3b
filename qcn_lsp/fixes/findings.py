"""Whether a finding is gone after a change, and whether anything came in its place.

Rules are counted, not matched by position: a change moves everything below it. What counts is that
the finding's own rule finds less, no rule finds more, and no other witness of the same weakness
stands where the finding stood. The same is asked of the text as `respelled` writes it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from qcn_lsp.fixes.candidate import Subject
from qcn_lsp.fixes.refusal import Reason, Refusal
from qcn_lsp.fixes.respelled import respelled
from qcn_lsp.scan.finding import Finding, Proof

Scan = Callable[[str, PurePosixPath], Sequence[Finding]]


@dataclass(frozen=True)
class Gone:
    """The finding is gone; `witnessed`: so is the weakness. `unchecked` says what is not known."""

    witnessed: bool
    unchecked: tuple[str, ...] = ()


def judged(subject: Subject, text: str, scan: Scan) -> Refusal | Gone:
    """Compare what the scanner finds before and after; `text` is the new one."""
    before, after = scan(subject.text, subject.path), scan(text, subject.path)
    finding = subject.finding
    if finding.proof is Proof.UNCONFIRMED:
        told = "whether the weakness is gone, for no rule sees it: a model reported it"
        return _brought(finding, before, after) or Gone(False, (told,))
    if refusal := _still(subject, text, before, after) or _brought(finding, before, after):
        return refusal
    unchecked = list(_hints(finding, before, after))
    if subject.path.suffix in {".py", ".pyi", ".pyw"}:
        seen = _respelled(subject, text, scan)
        if isinstance(seen, Refusal):
            return seen
        unchecked += seen
    if finding.proof is Proof.HINT:
        unchecked.append(f"whether the weakness is gone: {finding.rule} only stands near it")
    return Gone(finding.proof is Proof.WITNESS, tuple(unchecked))


def _still(
    subject: Subject, text: str, before: Sequence[Finding], after: Sequence[Finding]
) -> Refusal | None:
    finding = subject.finding
    rules = Counter(one.rule for one in before), Counter(one.rule for one in after)
    lines = (
        _lines(subject.text, before, finding.rule),
        _lines(text, after, finding.rule),
    )
    own = _line(subject.text, finding.start)
    if rules[1][finding.rule] >= rules[0][finding.rule] or lines[1][own] >= max(lines[0][own], 1):
        return Refusal(Reason.STILL_FOUND, f"{finding.rule} still finds it")
    for other in before:
        is_left = rules[1][other.rule] >= rules[0][other.rule]
        if is_left and _is_beside(finding, other) and other.proof is Proof.WITNESS:
            detail = f"{other.rule} still finds the same weakness, CWE-{finding.cwe}"
            return Refusal(Reason.DISGUISED, detail)
    return None


def _brought(
    finding: Finding, before: Iterable[Finding], after: Sequence[Finding]
) -> Refusal | None:
    more = Counter(one.rule for one in after) - Counter(one.rule for one in before)
    if not more:
        return None
    new = min((one for one in after if one.rule in more), key=lambda one: one.rule)
    if new.cwe == finding.cwe:
        detail = f"{new.rule} now finds the same weakness, CWE-{new.cwe}"
        return Refusal(Reason.DISGUISED, detail)
    return Refusal(Reason.NEW_FINDING, f"{new.rule}, CWE-{new.cwe}")


def _hints(finding: Finding, before: Iterable[Finding], after: Sequence[Finding]) -> Iterable[str]:
    """Hints of the same weakness that stood beside the finding and still stand."""
    left = {one.rule for one in after}
    near = {one.rule for one in before if _is_beside(finding, one)}
    for rule in sorted(left & near):
        yield f"what {rule} says of the same lines, before and after"


def _respelled(subject: Subject, text: str, scan: Scan) -> Refusal | list[str]:
    """Ask the rules of the same weakness about both texts with their names resolved."""
    spelled = [plain for one in (subject.text, text) if (plain := respelled(one)) is not None]
    if len(spelled) < 2:
        return ["the weakness under other names, for Python does not read the file"]
    cwe, rule = subject.finding.cwe, subject.finding.rule
    old, new = (
        Counter(one.rule for one in scan(plain, subject.path) if one.cwe == cwe)
        for plain in spelled
    )
    if 0 < old[rule] <= new[rule] or new - old:
        seen = rule if 0 < old[rule] <= new[rule] else min(new - old)
        return Refusal(Reason.DISGUISED, f"with its names resolved, {seen} still finds it")
    return []


def _is_beside(finding: Finding, other: Finding) -> bool:
    """Whether another rule finds the same weakness there."""
    touches = finding.start <= other.end and other.start <= finding.end
    return touches and other.rule != finding.rule and other.cwe == finding.cwe


def _lines(text: str, findings: Iterable[Finding], rule: str) -> Counter[str]:
    return Counter(_line(text, one.start) for one in findings if one.rule == rule)


def _line(text: str, offset: int) -> str:
    """The line at an offset, without its indentation."""
    start = text.rfind("\n", 0, offset) + 1
    end = text.find("\n", offset)
    return text[start : end if end >= 0 else len(text)].strip()
