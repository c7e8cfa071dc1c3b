"""The part of a text that a fix may replace: the function around a finding, or the statement."""

from dataclasses import dataclass

from qcn_indexer.enclosing import smallest_statement
from qcn_indexer.functions import innermost_function
from qcn_indexer.tree import Tree, tree_of

from qcn_lsp.fixes.candidate import Candidate, Subject
from qcn_lsp.fixes.imports import is_import, with_imports
from qcn_lsp.positions import line_end, split_lines
from qcn_lsp.rewriting import Piece, fitted


@dataclass(frozen=True)
class Place:
    """Characters `start` up to `end`, from the first line's beginning; `name` of a function."""

    start: int
    end: int
    name: str

    def lines(self, text: str) -> tuple[int, int]:
        """Return the first of its lines and the one behind its last; the text's first is 0."""
        return len(split_lines(text[: self.start])) - 1, len(split_lines(text[: self.end]))


def place_of(subject: Subject, tree: Tree | None) -> Place:
    """Return what a fix of the finding may replace; without a tree its lines alone."""
    finding, text = subject.finding, subject.text
    start, end, name = finding.start, finding.end, ""
    if tree is not None:
        if around := innermost_function(tree, start, max(start, end - 1)):
            start, end, name = around.start, around.end, around.qualified
        else:
            start, end = smallest_statement(tree, start, end)
    else:
        end = text.find("\n", end) if "\n" in text[end:] else len(text)
    line = text.rfind("\n", 0, start) + 1
    if not text[line:start].strip():
        start = line
    return Place(start, len(text[:end].rstrip()) if end > start else end, name)


def replaced(subject: Subject, place: Place, block: str, answer: int) -> Candidate:
    r"""Return the text with a model's block, whose lines end in `\n`, in the place's stead.

    Import lines in front of the block go to the other imports. A block whose indentation was left
    out gets the place's; line ends are the text's.
    """
    piece = Piece(subject.path, subject.text, place.start, place.end)
    imports, lines = _split(block.strip("\n").split("\n"), keep=is_import(piece.old))
    text = piece.with_new(fitted("\n".join(lines), piece))
    return Candidate(
        subject.path,
        with_imports(tree_of(subject.path, text), text, imports, line_end(subject.text)),
        answer,
    )


def _split(lines: list[str], *, keep: bool) -> tuple[list[str], list[str]]:
    """The import lines in front, and the rest."""
    if keep:
        return [], lines
    count = 0
    while count < len(lines) and (not lines[count].strip() or is_import(lines[count])):
        count += 1
    return [line for line in lines[:count] if line.strip()], lines[count:]
