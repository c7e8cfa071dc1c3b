"""A candidate: one file's new text, and where it comes from."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from qcn_lsp.positions import split_lines
from qcn_lsp.scan.finding import Finding, TextEdit


@dataclass(frozen=True)
class Subject:
    """What is to be fixed: a finding in a text, at its path below the workspace folder."""

    path: PurePosixPath
    text: str  # with its own line ends
    finding: Finding


@dataclass(frozen=True)
class Candidate:
    """A new text for the file at `path`, by the rule that found it or by a model.

    `answer` counts the model's answers from 1; 0 is the rule's own, deterministic fix.
    """

    path: PurePosixPath
    text: str
    answer: int = 0

    @property
    def origin(self) -> str:
        """Who proposes it, in words."""
        return f"the model's answer {self.answer}" if self.answer else "the rule's own fix"


def deterministic(subject: Subject) -> Candidate | None:
    """Return the fix that the rule itself knows, or None."""
    edits = subject.finding.fix
    return Candidate(subject.path, edited(subject.text, edits)) if edits else None


def edited(text: str, edits: Iterable[TextEdit]) -> str:
    """Return the text after edits, all of which count in the text before; ValueError: no edits."""
    parts, done = [], 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        if not done <= edit.start <= edit.end <= len(text):
            raise ValueError("edits that overlap, or reach beyond the text")
        parts += [text[done : edit.start], edit.text]
        done = edit.end
    return "".join((*parts, text[done:]))


def edits_between(old: str, new: str) -> list[TextEdit]:
    """Return edits of whole lines that make `new` of `old`."""
    before, after = split_lines(old), split_lines(new)
    starts = [0]
    for line in before:
        starts.append(starts[-1] + len(line))
    return [
        TextEdit(starts[i], starts[j], "".join(after[k:m]))
        for _, i, j, k, m in changes(before, after)
    ]


def changes(before: list[str], after: list[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """Yield what differs between two lists of lines, as difflib's opcodes."""
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    return (change for change in matcher.get_opcodes() if change[0] != "equal")


def unified(path: PurePosixPath, old: str, new: str) -> str:
    r"""Return the change as `patch` and `git apply` read it; line ends are the file's own."""
    before, after = (_whole(text) for text in (old, new))
    lines = difflib.unified_diff(before, after, f"a/{path}", f"b/{path}", n=3)
    shown = []
    for line in lines:
        shown.append(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n")
    return "".join(shown)


def _whole(text: str) -> list[str]:
    r"""The lines as `patch` counts them: ended by `\n` alone."""
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]
