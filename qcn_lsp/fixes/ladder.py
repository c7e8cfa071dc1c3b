"""The ladder of evidence: a candidate climbs it until a level is not reached, or is refused.

Each level holds only if all below it do. What could not be checked is said, never assumed: no
grammar, a rule that only stands near the weakness, no sandbox that holds, no tests, tests that
fail as they are. A refusal is final for the candidate, whatever it had reached.
"""

from dataclasses import replace

from qcn_lsp.fixes.candidate import Candidate, Subject
from qcn_lsp.fixes.checks import Pair, first_refusal
from qcn_lsp.fixes.disguise import disguised
from qcn_lsp.fixes.evidence import Evidence, Level
from qcn_lsp.fixes.findings import Scan, judged
from qcn_lsp.fixes.refusal import Reason, Refusal
from qcn_lsp.scan.process import ScanFailed


def quickly(subject: Subject, candidate: Candidate, scan: Scan) -> Evidence | Refusal:
    """Return what a candidate shows without anything of the project being run."""
    pair = Pair(subject, candidate)
    if refusal := first_refusal(pair):
        return refusal
    try:
        gone = judged(subject, candidate.text, scan)
    except ScanFailed as reason:
        return Refusal(Reason.UNSCANNED, str(reason))
    if isinstance(gone, Refusal):
        return gone
    if pair.before is None or pair.after is None:
        unread = "whether it parses: no grammar reads this file"
        return Evidence(Level.APPLIES, unchecked=(unread, *gone.unchecked))
    if how := disguised(subject.finding, pair.before, pair.after):
        return Refusal(Reason.DISGUISED, how)
    level = Level.GONE if gone.witnessed else Level.PARSES
    return Evidence(level, unchecked=gone.unchecked)


def without_tests(evidence: Evidence, why: str) -> Evidence:
    """Return the evidence with the reason why the project's tests were not run."""
    return replace(evidence, unchecked=(*evidence.unchecked, f"the project's tests: {why}"))
