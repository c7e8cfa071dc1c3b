"""A model's answer, parsed strictly: one fenced block, for the finding's own file.

A block that names another file is no mistake of form: the model wants to change that file, and is
refused for it.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from qcn_lsp.engine.answers import MalformedAnswer, block_of
from qcn_lsp.engine.messages import ChatResult
from qcn_lsp.fixes.candidate import Candidate, Subject
from qcn_lsp.fixes.paths import refused_path
from qcn_lsp.fixes.place import Place, replaced
from qcn_lsp.fixes.refusal import Reason, Refusal

_FENCE = re.compile(r" {0,3}(?:`{3,}|~{3,})(?P<info>[^`]*)")
_PATH = re.compile(r"[\w.@+%\\/-]*[\w%]\.[A-Za-z]\w{0,9}|[\w.@+%-]+(?:[/\\][\w.@+%-]+)+")
_HEADING = re.compile(r"[\s#*`_-]*(?:file|path|in)?[\s:*`_]*(?P<path>\S+?)[\s:*`_]*", re.IGNORECASE)
_DIFF = re.compile(r"(?:---|\+\+\+) (?:[ab]/)?(?P<path>\S+)")


def candidate_of(
    answer: ChatResult, subject: Subject, place: Place, number: int
) -> Candidate | Refusal:
    """Return the candidate that an answer holds, or why it holds none."""
    for named in _named_files(answer.text):
        if refusal := refused_path(named, subject.path):
            return refusal
    try:
        block = block_of(answer)
    except MalformedAnswer as problem:
        return Refusal(Reason.MALFORMED, str(problem).rstrip("."))
    if not block.text.strip():
        return Refusal(Reason.MALFORMED, "the block is empty")
    return replaced(subject, place, block.text, number)


def _named_files(text: str) -> Iterator[PurePosixPath]:
    """The files that the blocks of an answer are said to be of."""
    above, opened = "", False
    for line in text.replace("\r\n", "\n").split("\n"):
        fence = _FENCE.fullmatch(line)
        if fence and not opened:
            opened = True
            words = [word.rpartition("=")[2].strip("\"'{}") for word in fence["info"].split()]
            heading = _HEADING.fullmatch(above)
            for word in (*words, heading["path"] if heading else ""):
                if _PATH.fullmatch(word):
                    yield PurePosixPath(word)
        elif fence and not fence["info"].strip():
            opened = False
        elif opened and (diff := _DIFF.fullmatch(line.rstrip())) and diff["path"] != "/dev/null":
            yield PurePosixPath(diff["path"])
        if line.strip():
            above = line
