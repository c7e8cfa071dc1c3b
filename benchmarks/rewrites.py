"""Text as it was really written, from a git history, and what stood in front of it.

Each changed place of a commit gives two cases. *Rewrite*: the file as it was is in front, and the
place is written anew with the lines around it, as a model answers that is asked to change code.
*Typed*: the new lines alone are written, between what stands around them in the new version, as a
suggestion in an editor; other files are in front, and the old version is not.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from qcn_indexer.blocks import hunks_of

from benchmarks.histories import History, Texts

AROUND = 8  # lines on each side that a rewrite repeats
LONGEST = 64  # lines: a longer change is a new file, or a tool's work
OTHERS = 6  # files in front

Kind = Literal["rewrite", "typed"]


@dataclass(frozen=True, slots=True)
class Written:
    """Some text that was written between a prefix and a suffix, behind other files."""

    kind: Kind
    path: PurePosixPath
    front: tuple[tuple[PurePosixPath, str], ...]  # other files, and for a rewrite the old version
    prefix: str
    text: str
    suffix: str


def written(history: History, *, suffixes: tuple[str, ...] = (".py",)) -> list[Written]:
    """All cases of a history, oldest first; of each commit's files those with such a suffix."""
    texts = dict(history.start)
    cases: list[Written] = []
    for commit in history.commits:
        changed = [change.path for change in commit.changes]
        for change in commit.changes:
            old = texts.get(change.old_path or change.path)
            if old is not None and change.text is not None and change.path.suffix in suffixes:
                front = tuple(_front(texts, changed, change.path))
                cases += _cases(change.path, old, change.text, front)
        for change in commit.changes:
            texts.pop(change.old_path or change.path, None)
            if change.text is not None:
                texts[change.path] = change.text
    return cases


def _front(
    texts: Texts, changed: list[PurePosixPath], path: PurePosixPath
) -> Iterator[tuple[PurePosixPath, str]]:
    """Files that a ranking would show: those that changed with it, then its neighbours."""
    near = [other for other in sorted(texts) if other.parent == path.parent]
    files = dict.fromkeys(other for other in (*changed, *near) if other in texts and other != path)
    for other in itertools.islice(files, OTHERS):
        yield other, texts[other]


def _cases(
    path: PurePosixPath, old: str, new: str, front: tuple[tuple[PurePosixPath, str], ...]
) -> Iterator[Written]:
    before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
    for i1, i2, j1, j2 in hunks_of(before, after):
        if j1 == j2 or max(i2 - i1, j2 - j1) > LONGEST:
            continue
        yield _between("typed", path, front, after, j1, j2)
        start, end = max(0, j1 - AROUND), min(len(after), j2 + AROUND)
        yield _between("rewrite", path, (*front, (path, old)), after, start, end)


def _between(
    kind: Kind,
    path: PurePosixPath,
    front: tuple[tuple[PurePosixPath, str], ...],
    lines: list[str],
    start: int,
    end: int,
) -> Written:
    prefix, text, suffix = ("".join(lines[a:b]) for a, b in ((0, start), (start, end), (end, None)))
    return Written(kind, path, front, prefix, text, suffix)


def some(cases: list[Written], count: int, kind: Kind) -> list[Written]:
    """As many cases of a kind, drawn over the whole history; the same ones each time."""
    of_kind = [case for case in cases if case.kind == kind]
    return random.Random(0).sample(of_kind, min(count, len(of_kind)))
