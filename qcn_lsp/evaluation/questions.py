"""What is asked: completions of one line each, every one behind several contexts.

Three experiments. A context never holds the answer: the file that is completed in is left out of
it, except where the question is whether a line deleted from it comes back.

- *repository*: with and without the repository, packed as for an editor in which that file is open.
- *overlay*: a file that the line needs stands in its version before git's last change, and behind
  it the change in one of the formats; beside the newer version alone, as compaction leaves it, and
  the older version alone.
- *deletion*: the line itself is deleted, and asked for at its place; the context holds the file as
  it was, and behind it the change. How often does the line come back?
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from qcn_indexer.history import history
from qcn_indexer.layout import Count, Segment
from qcn_indexer.packing import pack
from qcn_indexer.ranking import File, Ranked, rank

from qcn_lsp.evaluation.formats import FORMATS
from qcn_lsp.evaluation.lines import Line, Texts
from qcn_lsp.evaluation.versions import version_before

COMMITS = 1_000
PREFIX, SUFFIX = 2_000, 1_000  # characters of the file itself, at the most
# A file that has changed takes at most a quarter of the room, so its longest change, which quotes
# both versions, a half: the last quarter is other files'.
QUARTER = 4
MARGIN = 256  # tokens: names of repository and files, and what parts have more than their sum
POOL = 20  # lines looked at for each question about a change: git is asked for each one's file
WITHOUT, WITH = "without", "with the repository"
COMPACTED, STALE = "the newer version alone", "the older version alone"

Context = tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A line to complete, behind each of the contexts; `touched`: the change is about its name."""

    path: PurePosixPath
    prefix: str
    suffix: str
    expected: str
    contexts: Mapping[str, Context]
    touched: bool = False


class Questions:
    """Makes the questions about the files of one repository."""

    def __init__(self, root: Path, texts: Texts, *, count: Count, room: int) -> None:
        """`room` is what a context may take, in tokens as `count` counts them."""
        self._root, self._texts = root, texts
        self._count, self._room = count, room
        self._history = history(root, commits=COMMITS)
        # So that the same commit is asked about in the same way on any day.
        self._now = max((commits.last for commits in self._history.values()), default=0.0)
        self._versions: dict[PurePosixPath, str | None] = {}

    def repository(self, lines: Sequence[Line]) -> Iterator[Question]:
        """Yield what is asked with and without the repository."""
        for line in lines:
            packed = self._packed(self._ranked(line.path), self._room, {line.path})
            yield self._at(line, {WITHOUT: (), WITH: packed})

    def overlay(self, lines: Sequence[Line], limit: int) -> Iterator[Question]:
        """Yield at most `limit` questions, those first whose change is about the line's name."""
        ranked = self._ranked(None)
        pool = lines[: POOL * limit]
        changed = [(line, older) for line in pool if (older := self._older(line.defined_in))]
        changed.sort(key=lambda one: not self._touches(*one))
        for line, older in changed[:limit]:
            path, newer = line.defined_in, self._texts[line.defined_in]
            others = self._packed(ranked, self._room // QUARTER, {path, line.path})
            contexts = _versions(others, path, older, newer)
            yield self._at(line, contexts, touched=self._touches(line, older))

    def deletion(self, lines: Sequence[Line], limit: int) -> Iterator[Question]:
        """Yield at most `limit` questions at the places of lines that have been deleted."""
        ranked = self._ranked(None)
        for line in lines:
            older = self._texts[line.path]
            if limit <= 0 or not self._fits(line.path, older):
                continue
            limit -= 1
            kept = older.split("\n")
            deleted = kept.pop(line.number)
            newer = "\n".join(kept)
            others = self._packed(ranked, self._room // QUARTER, {line.path})
            indentation = deleted[: len(deleted) - len(deleted.lstrip())]
            whole = replace(line, before=indentation, rest=deleted.strip())
            contexts = {WITHOUT: ()} | _versions(others, line.path, older, newer)
            yield self._at(whole, contexts)

    def _at(
        self, line: Line, contexts: Mapping[str, Context], *, touched: bool = False
    ) -> Question:
        lines = self._texts[line.path].split("\n")
        above = "".join(f"{one}\n" for one in lines[: line.number])[-PREFIX:]
        below = "".join(f"\n{one}" for one in lines[line.number + 1 :])[:SUFFIX]
        return Question(line.path, above + line.before, below, line.rest, contexts, touched)

    def _older(self, path: PurePosixPath) -> str | None:
        """The version of a file before its last change, where both have room."""
        if path not in self._versions:
            newer = self._texts[path]
            older = version_before(self._root, path, newer) if self._fits(path, newer) else None
            self._versions[path] = older if older and self._fits(path, older) else None
        return self._versions[path]

    def _touches(self, line: Line, older: str) -> bool:
        """Whether a line that holds the name is another one in the older version."""
        versions = (older, self._texts[line.defined_in])
        named, named_now = (
            {one for one in text.split("\n") if line.name in one} for text in versions
        )
        return named != named_now

    def _fits(self, path: PurePosixPath, text: str) -> bool:
        """Whether a file is short enough to be shown with its change."""
        return QUARTER * self._tokens(path, text) <= self._room

    def _tokens(self, path: PurePosixPath, text: str) -> int:
        return Segment(path, text, "base", "file").tokens(self._count)

    def _ranked(self, opened: PurePosixPath | None) -> list[Ranked]:
        """All files as they rank in an editor in which one file is open, or none."""
        files = [File(path, text, 0.0, open=path == opened) for path, text in self._texts.items()]
        return rank(files, history=self._history, now=self._now)

    def _packed(
        self, ranked: Sequence[Ranked], budget: int, without: set[PurePosixPath]
    ) -> tuple[Segment, ...]:
        """A base of the files but those."""
        files = [one for one in ranked if one.path not in without]
        return pack(files, budget=max(0, budget - MARGIN), count=self._count).layout.segments


def _versions(others: Context, path: PurePosixPath, older: str, newer: str) -> dict[str, Context]:
    """The contexts in which a file stands in either version, or in both by one of the formats."""
    was = Segment(path, older, "base", "file", hot=True)
    contexts = {
        COMPACTED: (*others, replace(was, text=newer)),
        STALE: (*others, was),
    }
    for name, text_of in FORMATS.items():
        entry = Segment(path, text_of(path, older, newer), "overlay", "change")
        contexts[f"older, then {name}"] = (*others, was, entry)
    return contexts
