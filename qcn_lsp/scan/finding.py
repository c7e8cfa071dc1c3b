"""A finding: one weakness at one place of one text, as every scanner tells it."""

from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b


class Severity(StrEnum):
    """How bad it is if the finding is right."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Proof(StrEnum):
    """What the rule's silence is worth.

    When a witness no longer matches, the weakness is gone. A hint only stands near it: a text may
    keep the weakness and lose the hint. Unconfirmed is what a model said.
    """

    WITNESS = "witness"
    HINT = "hint"
    UNCONFIRMED = "unconfirmed"


@dataclass(frozen=True)
class TextEdit:
    """Replace the characters `start` up to `end` of the text by `text`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Finding:
    """A weakness; `start` and `end` count characters (code points) of the scanned text.

    `rule` is unique among all scanners (`qcn.python.sql-format`, `ruff.S602`, `secret.aws-key`).
    `cwe` is the number of the weakness in MITRE's list, `message` one sentence for the line,
    `rationale` why it matters and what to do. `fix`: edits that remove the weakness and change
    nothing else, where the rule knows them; empty elsewhere.
    """

    rule: str
    cwe: int
    severity: Severity
    proof: Proof
    message: str
    rationale: str
    start: int
    end: int
    fix: tuple[TextEdit, ...] = ()


def identity(text: str, finding: Finding) -> str:
    """Return what tells a finding from all others of its text, wherever in it that has moved."""
    same = text[finding.start : finding.end]
    before = text.count(same, 0, finding.start) if same else 0
    name = f"{finding.rule}\0{same}\0{before}".encode("utf-8", "replace")
    return blake2b(name, digest_size=12).hexdigest()
