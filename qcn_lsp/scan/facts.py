"""What a text takes from outside and what it does about that: found once, whichever rules ask."""

import re
from dataclasses import dataclass, field
from functools import cached_property

from ast_grep_py import Rule, SgNode

from qcn_lsp.scan.source import Call, Source, Span, of_kinds, span_of

_KEYS = {"subscript": "subscript", "subscript_expression": "index", "index_expression": "index"}
_CHECKS = re.compile(
    r"(?i)(?:.*\.)?_*(?!check_?(?:call|out|in)|ensure_?(?:dir|file|path|exist|future))"
    r"(?:validate|check|ensure|assert|verify)\w*"
)


@dataclass(frozen=True)
class Outside:
    """What a language takes from outside, and what makes it harmless; from `flow.yml`."""

    sources: list[Rule] = field(default_factory=list)
    sanitizers: str = ""  # a pattern of names of calls
    handlers: str = ""  # a pattern of decorators and annotations: parameters come from outside


class Facts:
    """Of one text; places are in the order of the text."""

    def __init__(self, source: Source, outside: Outside) -> None:
        self.source = source
        self.outside = outside
        self._conditions: dict[Span, list[tuple[int, str]]] = {}

    @cached_property
    def origins(self) -> list[Span]:
        """Where something comes from outside."""
        if not self.outside.sources:
            return []
        return [span_of(node) for node in self.source.root.find_all(any=self.outside.sources)]

    @cached_property
    def clean(self) -> list[Span]:
        """The calls of sanitizers, and keys: what is found by a key is not the key."""
        known = re.compile(self.outside.sanitizers) if self.outside.sanitizers else None
        lookups = of_kinds(self.source.root, self.source.grammar.lookups)
        keys = (key for node in lookups for key in node.field_children(_KEYS[node.kind()]))
        return [*(self.calls_of(known) if known else ()), *map(span_of, keys)]

    def calls_of(self, names: re.Pattern[str]) -> list[Span]:
        """Return the calls of what is named so."""
        return [span_of(call.node) for call in self.source.calls if names.fullmatch(call.name)]

    @cached_property
    def checks(self) -> list[Call]:
        """The calls of what by its name checks, and raises: nobody takes what they return."""
        return [
            call
            for call in self.source.calls
            if _CHECKS.fullmatch(call.name)
            and (around := call.node.parent())
            and around.kind() in ("expression_statement", "await")
        ]

    def conditions(self, around: SgNode) -> list[tuple[int, str]]:
        """Return the conditions in a function, or in the whole: where each ends, and its text."""
        place = span_of(around)
        if place not in self._conditions:
            found = of_kinds(around, self.source.grammar.conditions)
            nodes = [check.field("condition") or check for check in found]
            told = [(span_of(node).end, _without_brackets(node)) for node in nodes]
            self._conditions[place] = told
        return self._conditions[place]


def _without_brackets(condition: SgNode) -> str:
    """Return a condition's text without the brackets that the language wants around it."""
    text = condition.text()
    around = condition.kind() in ("parenthesized_expression", "condition_clause")
    return text[1:-1].strip() if around else text
