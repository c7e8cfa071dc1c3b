"""Why a candidate is refused: a reason as a value, and a sentence."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Each kind of unacceptable fix; the value is its name in JSON."""

    MALFORMED = "malformed-answer"
    NO_CHANGE = "no-change"
    OTHER_FILE = "touches-another-file"
    TEST = "touches-a-test"
    CONFIGURATION = "touches-a-configuration"
    HIDDEN_CHARACTERS = "hidden-characters"
    SUPPRESSION = "adds-a-suppression"
    TOO_FAR = "changes-more-than-the-function"
    PARSES_WORSE = "parses-worse"
    SIGNATURE = "changes-a-public-signature"
    REMOVES = "removes-the-feature"
    UNSCANNED = "cannot-be-scanned"
    STILL_FOUND = "finding-still-there"
    DISGUISED = "hides-the-finding"
    NEW_FINDING = "brings-a-new-finding"
    BREAKS_TESTS = "breaks-tests"
    HANGS = "tests-do-not-end"
    EXPLOITABLE = "exploit-test-still-fails"


_SENTENCES = {
    Reason.MALFORMED: "The answer is not one fenced block with the whole function",
    Reason.NO_CHANGE: "It changes nothing",
    Reason.OTHER_FILE: "It edits another file",
    Reason.TEST: "It edits a test",
    Reason.CONFIGURATION: "It edits a configuration",
    Reason.HIDDEN_CHARACTERS: "It brings characters that a reader does not see",
    Reason.SUPPRESSION: "It silences a scanner instead of removing the weakness",
    Reason.TOO_FAR: "It changes more than the function needs",
    Reason.PARSES_WORSE: "It does not parse as well as before",
    Reason.SIGNATURE: "It changes a public signature",
    Reason.REMOVES: "It removes what the code does",
    Reason.UNSCANNED: "It cannot be scanned",
    Reason.STILL_FOUND: "The finding is still there",
    Reason.DISGUISED: "It hides the weakness from the rule",
    Reason.NEW_FINDING: "It brings a new finding",
    Reason.BREAKS_TESTS: "It breaks tests that passed",
    Reason.HANGS: "With it the project's tests do not end",
    Reason.EXPLOITABLE: "The exploit still works",
}


@dataclass(frozen=True)
class Refusal:
    """A reason and what it is about; `log` is what tests printed, cut: untrusted text."""

    reason: Reason
    detail: str = ""
    log: str = ""

    @property
    def sentence(self) -> str:
        """The reason in words."""
        return _SENTENCES[self.reason] + (f": {self.detail}." if self.detail else ".")
