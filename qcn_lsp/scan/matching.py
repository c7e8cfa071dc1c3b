"""Applying the rules to a parsed text."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ast_grep_py import SgNode

from qcn_lsp.scan.edits import edits_of
from qcn_lsp.scan.facts import Facts
from qcn_lsp.scan.finding import Finding
from qcn_lsp.scan.flow import Flow
from qcn_lsp.scan.grammars import Grammar
from qcn_lsp.scan.rules import Rule, outside_of, rules_of
from qcn_lsp.scan.source import Call, Source, Span, span_of


@dataclass(frozen=True, slots=True)
class Match:
    """A finding, and the values elsewhere in the text that it is made of."""

    finding: Finding
    via: tuple[Span, ...] = ()
    overrides: tuple[str, ...] = ()


Part = Callable[[str], SgNode | None]


def matches_in(text: str, grammar: Grammar) -> Iterator[Match]:
    """Yield what the rules of a language find, rule by rule."""
    rules = [rule for folder in grammar.rules for rule in rules_of(folder)]
    rules = [rule for rule in rules if not rule.words or any(word in text for word in rule.words)]
    if not rules:
        return
    source = Source(text, grammar)
    flow = Flow(Facts(source, outside_of(grammar.rules[0])))
    for rule in rules:
        one = replace(flow, sanitizers=rule.sanitizers, checked=rule.checked, via=[])
        for node, part, call in _candidates(rule, source):
            one.via.clear()
            asked = rule.args if rule.call else rule.flow
            if all(_holds(question, part(key), one) for key, question in asked.items()):
                yield _match(rule, source, node, part, call, tuple(one.via))


def _candidates(rule: Rule, source: Source) -> Iterator[tuple[SgNode, Part, Call | None]]:
    """Yield the nodes that a rule looks at, each with what its parts are called by."""
    if rule.call:
        for call in source.calls:
            if rule.call.fullmatch(call.name):
                yield call.node, call.argument, call
        return
    config = {"rule": rule.rule, "constraints": rule.constraints}
    for node in source.root.find_all(config):  # type: ignore[call-overload]
        yield node, node.get_match, None


def _holds(question: str, node: SgNode | None, flow: Flow) -> bool:
    """Whether all that is asked of a part is so."""
    for one in question.split(" and "):
        if one in ("absent", "present"):
            holds = (node is None) == (one == "absent")
        elif node is None:
            holds = False
        elif one.startswith("/"):
            holds = bool(re.fullmatch(one[1:-1], node.text(), re.DOTALL))
        elif one.startswith("name:"):
            written = re.sub(r"\s+", "", node.text())
            holds = bool(re.fullmatch(one[5:], flow.source.full_name(written)))
        elif one.startswith("not "):
            holds = not flow.asked(one[4:], node)
        else:
            holds = flow.asked(one, node)
        if not holds:
            return False
    return True


def _match(
    rule: Rule, source: Source, node: SgNode, part: Part, call: Call | None, via: tuple[Span, ...]
) -> Match:
    place = span_of(node)
    edits = (edits_of(fix, source, node, part, call) for fix in rule.fixes)
    finding = Finding(
        rule=rule.id,
        cwe=rule.cwe,
        severity=rule.severity,
        proof=rule.proof,
        message=rule.message,
        rationale=rule.rationale,
        start=place.start,
        end=place.end,
        fix=next(filter(None, edits), ()),
    )
    return Match(finding, via, rule.overrides)
