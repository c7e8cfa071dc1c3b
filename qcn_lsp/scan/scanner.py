"""Scanning one text: all scanners over it, each weakness told once.

Nothing in the workspace is read, run or obeyed: no configuration, no comment that asks to be left
alone. The text alone, and the language it is in, decide what is found.

Bounds: texts of more than `LONGEST` characters, and binary ones, have no findings. A text that
keeps the rules busy is given up by whoever runs this (`worker.py` in a process that can be ended).
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from qcn_lsp.scan.finding import Finding, Proof

if TYPE_CHECKING:
    from qcn_lsp.scan.matching import Match

LONGEST = 512 * 1024  # characters: twice what a walk lets through, as for the parser's trees

_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs, which no encoder takes
_ORDER = [Proof.WITNESS, Proof.HINT, Proof.UNCONFIRMED]


def languages() -> frozenset[str]:
    """Return the languages that are looked at beyond secrets, as editors call them."""
    from qcn_lsp.scan.grammars import BY_LANGUAGE

    return frozenset(BY_LANGUAGE)


def scan_text(text: str, language: str | None) -> tuple[Finding, ...]:
    """Return the findings of a text in a language (as editors call it), in the order of the text.

    Two findings of one weakness are one: that of the rule that proves more. Never raises.
    """
    if len(text) > LONGEST or "\0" in text:
        return ()
    from qcn_lsp.scan.grammars import BY_LANGUAGE
    from qcn_lsp.scan.matching import Match, matches_in
    from qcn_lsp.scan.ruff import Ruff
    from qcn_lsp.scan.secrets import secret_findings
    from qcn_lsp.scan.turned import turned_lines

    text = _HALVES.sub("\ufffd", text)
    grammar = BY_LANGUAGE.get(language or "")
    matches = [Match(finding) for finding in (*secret_findings(text), *turned_lines(text))]
    if language == "python":
        with Ruff(text) as ruff:
            matches += matches_in(text, BY_LANGUAGE["python"])
            matches += map(Match, ruff.findings())
    elif grammar is not None:
        matches += matches_in(text, grammar)
    return _once_each(matches)


def _once_each(matches: "Iterable[Match]") -> tuple[Finding, ...]:
    """Leave out what another finding says better: of one weakness, at one place."""
    ranked = sorted(matches, key=_rank)
    overridden = [(match, id_) for match in ranked for id_ in match.overrides]
    kept: list[Match] = []
    for match in ranked:
        finding = match.finding
        if any(id_ == finding.rule and _touch(other, match) for other, id_ in overridden):
            continue
        if any(_same(other, match) for other in kept):
            continue
        kept.append(match)
    return tuple(
        sorted((match.finding for match in kept), key=lambda one: (one.start, one.end, one.rule))
    )


def _rank(match: "Match") -> tuple[int, bool, int, int, str]:
    finding = match.finding
    foreign = finding.rule.startswith("ruff.")
    return _ORDER.index(finding.proof), foreign, finding.start, finding.end, finding.rule


def _same(one: "Match", other: "Match") -> bool:
    return one.finding.cwe == other.finding.cwe and _touch(one, other)


def _touch(one: "Match", other: "Match") -> bool:
    """Whether a place of one finding, or of what it is made of, overlaps the other's."""
    places = [(one.finding.start, one.finding.end), *one.via]
    others = [(other.finding.start, other.finding.end), *other.via]
    return any(a < d and c < b for a, b in places for c, d in others)
