"""What a candidate is refused for without running anything: each check is a function."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from qcn_indexer.enclosing import syntax_errors
from qcn_indexer.functions import functions
from qcn_indexer.tree import Tree, tree_of

from qcn_lsp.fixes.candidate import Candidate, Subject, changes
from qcn_lsp.fixes.hidden_text import brought
from qcn_lsp.fixes.imports import is_import
from qcn_lsp.fixes.paths import refused_path
from qcn_lsp.fixes.place import place_of
from qcn_lsp.fixes.python_module import python_module
from qcn_lsp.fixes.refusal import Reason, Refusal
from qcn_lsp.fixes.removal import removed_feature
from qcn_lsp.fixes.suppressions import added_suppression
from qcn_lsp.positions import split_lines
from qcn_lsp.postprocess.special_tokens import control_tokens

GROWTH, ROOM = 2, 20  # a function may become so many times as long, and so many lines longer


@dataclass(frozen=True)
class Pair:
    """A subject and a candidate, with the trees of both texts, parsed once."""

    subject: Subject
    candidate: Candidate

    @cached_property
    def before(self) -> Tree | None:
        """The tree of the text as it is."""
        return tree_of(self.subject.path, self.subject.text)

    @cached_property
    def after(self) -> Tree | None:
        """The tree of the new text."""
        return tree_of(self.subject.path, self.candidate.text)


def first_refusal(pair: Pair) -> Refusal | None:
    """Return why the candidate is refused, by the first check that refuses it."""
    return next((refusal for check in CHECKS if (refusal := check(pair))), None)


def _path(pair: Pair) -> Refusal | None:
    return refused_path(pair.candidate.path, pair.subject.path)


def _change(pair: Pair) -> Refusal | None:
    return Refusal(Reason.NO_CHANGE) if pair.candidate.text == pair.subject.text else None


def _hidden_characters(pair: Pair) -> Refusal | None:
    before, after = pair.subject.text, pair.candidate.text
    hidden = brought(before, after)
    if not hidden and control_tokens(after) - control_tokens(before):
        hidden = "a control token of the model"
    return Refusal(Reason.HIDDEN_CHARACTERS, hidden) if hidden else None


def _suppression(pair: Pair) -> Refusal | None:
    sign = added_suppression(pair.subject.text, pair.candidate.text)
    return Refusal(Reason.SUPPRESSION, f"`{sign}`") if sign else None


def _reach(pair: Pair) -> Refusal | None:
    """Only the function around the finding may change, and imports may come."""
    place = place_of(pair.subject, pair.before)
    first, behind = place.lines(pair.subject.text)
    before, after = split_lines(pair.subject.text), split_lines(pair.candidate.text)
    grown = 0
    for _, i, j, k, m in changes(before, after):
        if first <= i and j <= behind and not (i == j == behind):
            grown += (m - k) - (j - i)
        elif not all(is_import(line) or not line.strip() for line in before[i:j] + after[k:m]):
            return Refusal(Reason.TOO_FAR, f"line {i + 1} is outside of {place.name or 'it'}")
    if grown > (GROWTH - 1) * (behind - first) + ROOM:
        return Refusal(Reason.TOO_FAR, f"{grown} more lines, where it has {behind - first}")
    return None


def _parsing(pair: Pair) -> Refusal | None:
    texts = (pair.subject.text, pair.candidate.text)
    before, after = (syntax_errors(pair.subject.path, text) for text in texts)
    if before is None or pair.before is None:
        return None
    if after is None:
        return Refusal(Reason.PARSES_WORSE, "it cannot be parsed in time")
    if after > before:
        return Refusal(Reason.PARSES_WORSE, f"{after} places cannot be read")
    is_python = pair.before.language == "python"
    if is_python and python_module(pair.subject.text) and not python_module(pair.candidate.text):
        return Refusal(Reason.PARSES_WORSE, "Python does not read it")
    return None


def _signatures(pair: Pair) -> Refusal | None:
    if pair.before is None or pair.after is None:
        return None
    old, new = (_public(tree) for tree in (pair.before, pair.after))
    kept = {name for name, _ in new}
    changed = sorted(name for name, _ in old - new if name in kept)
    return Refusal(Reason.SIGNATURE, f"`{changed[0]}`") if changed else None


def _public(tree: Tree) -> Counter[tuple[str, str]]:
    return Counter((one.qualified, one.signature) for one in functions(tree) if one.is_public)


def _removal(pair: Pair) -> Refusal | None:
    if pair.before is None or pair.after is None:
        return None
    removed = removed_feature(pair.before, pair.after)
    return Refusal(Reason.REMOVES, removed) if removed else None


CHECKS: tuple[Callable[[Pair], Refusal | None], ...] = (
    _path,
    _change,
    _hidden_characters,
    _suppression,
    _parsing,
    _reach,
    _signatures,
    _removal,
)


def changed_lines(old: str, new: str) -> Iterator[int]:
    """Yield the new text's lines that differ, counted from 1; of a deletion the one behind it."""
    before, after = split_lines(old), split_lines(new)
    for _, _, _, k, m in changes(before, after):
        yield from range(k + 1, m + 1) if m > k else (min(k + 1, len(after)),)
