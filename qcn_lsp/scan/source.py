"""A parsed text, with the indexes that all rules share: calls, definitions, imports.

Each index is made when the first rule asks for it. Places are counted in characters.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ast_grep_py import Rule, SgNode, SgRoot

from qcn_lsp.scan.grammars import Grammar

_QUOTES = "\"'`"
_LONE_RETURN = re.compile(r"\r(?!\n)")  # the line end of old Macs, which no grammar takes for one


class Span(NamedTuple):
    """The characters `start` up to `end`."""

    start: int
    end: int

    def holds(self, other: "Span") -> bool:
        """Whether the other span lies in this one."""
        return self.start <= other.start and other.end <= self.end


def span_of(node: SgNode) -> Span:
    """Return where a node stands."""
    place = node.range()
    return Span(place.start.index, place.end.index)


def of_kinds(node: SgNode, kinds: Iterable[str]) -> list[SgNode]:
    """Return what is of one of the kinds in a node, itself included, in the order of the text."""
    wanted: list[Rule] = [{"kind": kind} for kind in kinds]
    return node.find_all(any=wanted) if wanted else []


@dataclass(frozen=True, slots=True)
class Call:
    """A call, with the name of what is called as the imports spell it out."""

    node: SgNode
    callee: SgNode
    name: str
    positional: tuple[SgNode, ...]
    named: dict[str, SgNode]

    def argument(self, keys: str) -> SgNode | None:
        """Return the argument of the first of `keys` (`0|url`) that there is.

        `0.url` is what the object that is the first argument has under `url`.
        """
        for key in keys.split("|"):
            position, _, name = key.partition(".")
            if not position.isdigit():
                if key in self.named:
                    return self.named[key]
            elif int(position) < len(self.positional):
                found = self.positional[int(position)]
                if not name:
                    return found
                if value := _value_in(found, name):
                    return value
        return None


def _value_in(node: SgNode, key: str) -> SgNode | None:
    """Return what an object of JavaScript has under a key."""
    for pair in node.children() if node.kind() == "object" else ():
        name = pair.field("key")
        if name is not None and name.text().strip(_QUOTES) == key:
            return pair.field("value")
    return None


@dataclass(frozen=True, slots=True)
class Definition:
    """A value that a name is given; `scope` is the function, or the text, that it is known in."""

    name: str
    value: SgNode
    place: Span
    scope: Span
    block: Span
    adds: bool  # to what the name had before


class Source:
    """One text in one language, parsed."""

    def __init__(self, text: str, grammar: Grammar) -> None:
        self.text = text
        self.grammar = grammar
        self.root: SgNode = SgRoot(_LONE_RETURN.sub("\n", text), grammar.name).root()

    @cached_property
    def calls(self) -> list[Call]:
        """All calls, in the order of the text."""
        found = of_kinds(self.root, self.grammar.calls)
        return [call for node in found if (call := self._call(node))]

    def call_at(self, node: SgNode) -> Call | None:
        """Return the call that a node is."""
        return self._calls_by_place.get(span_of(node))

    @cached_property
    def _calls_by_place(self) -> dict[Span, Call]:
        return {span_of(call.node): call for call in self.calls}

    def _call(self, node: SgNode) -> Call | None:
        fields, arguments_field = self.grammar.calls[node.kind()]
        parts = [part for name in fields if (part := node.field(name))]
        arguments = node.field(arguments_field)
        if not parts:
            return None
        prefix = "new " if node.kind() in ("new_expression", "object_creation_expression") else ""
        written = ".".join(re.sub(r"\s+", "", part.text()) for part in parts)
        positional: list[SgNode] = []
        named: dict[str, SgNode] = {}
        for argument in arguments.children() if arguments else ():
            if not argument.is_named() or argument.kind() == "comment":
                continue
            if argument.kind() == "keyword_argument":
                name, value = argument.field("name"), argument.field("value")
                if name and value:
                    named[name.text()] = value
            else:
                positional.append(argument)
        return Call(node, parts[-1], prefix + self.full_name(written), tuple(positional), named)

    def full_name(self, written: str) -> str:
        """Return a dotted name with its first part as the imports spell it out."""
        first, dot, rest = written.partition(".")
        return self.imports.get(first, first) + dot + rest

    # --- Imports -------------------------------------------------------------------------------

    @cached_property
    def imports(self) -> dict[str, str]:
        """What imported names stand for: `run` -> `subprocess.run`."""
        if self.grammar.name == "python":
            return dict(self._python_imports())
        if self.grammar.name == "go":
            return dict(self._go_imports())
        if self.grammar.name in ("javascript", "typescript", "tsx"):
            return dict(self._script_imports())
        return {}

    def _python_imports(self) -> Iterator[tuple[str, str]]:
        for statement in self.root.find_all(kind="import_statement"):
            for item in statement.field_children("name"):
                name, alias = item.field("name"), item.field("alias")
                if name and alias:
                    yield alias.text(), name.text()
        for statement in self.root.find_all(kind="import_from_statement"):
            module = statement.field("module_name")
            for item in statement.field_children("name"):
                name, alias = item.field("name") or item, item.field("alias") or item
                if module:
                    yield alias.text(), f"{module.text()}.{name.text()}"

    def _go_imports(self) -> Iterator[tuple[str, str]]:
        for item in self.root.find_all(kind="import_spec"):
            path, name = item.field("path"), item.field("name")
            if path:
                whole = path.text().strip(_QUOTES)
                yield name.text() if name else whole.rpartition("/")[2], whole

    def _script_imports(self) -> Iterator[tuple[str, str]]:
        known = {**dict(self._script_statements()), **dict(self._required())}
        yield from known.items()
        for item in self.root.find_all(kind="variable_declarator"):
            name, value = item.field("name"), item.field("value")
            if name and value and value.kind() in ("member_expression", "identifier"):
                first, dot, rest = value.text().partition(".")
                if first in known:  # const { exec } = cp, or exec = cp.exec
                    yield from _script_names(name, known[first] + dot + rest)

    def _script_statements(self) -> Iterator[tuple[str, str]]:
        for statement in self.root.find_all(kind="import_statement"):
            origin = statement.field("source")
            clause = next((c for c in statement.children() if c.kind() == "import_clause"), None)
            if origin and clause:
                yield from _script_names(clause, _module(origin))

    def _required(self) -> Iterator[tuple[str, str]]:
        """Yield what is loaded by `require(…)`, or by `require(…).member`."""
        for item in self.root.find_all(kind="variable_declarator", regex=r"require\("):
            name, value = item.field("name"), item.field("value")
            member = ""
            if value and value.kind() == "member_expression":
                field = value.field("property")
                value, member = value.field("object"), f".{field.text()}" if field else ""
            arguments = value.field("arguments") if value else None
            modules = [a for a in arguments.children() if a.kind() == "string"] if arguments else []
            if name and modules:
                yield from _script_names(name, _module(modules[0]) + member)

    # --- Definitions ---------------------------------------------------------------------------

    @cached_property
    def definitions(self) -> dict[str, list[Definition]]:
        """The values that each name is given, in the order of the text."""
        found: dict[str, list[Definition]] = {}
        for node in of_kinds(self.root, self.grammar.definitions):
            for name, value in self._given(node):
                adds = node.kind().startswith("augmented") or _adds(node)
                found.setdefault(name, []).append(self._definition(name, value, node, adds=adds))
        for call in self.calls if self.grammar.fills else ():
            position = self.grammar.fills.get(call.name, -1)
            if 0 <= position < len(call.positional):
                for name in self._names_in(call.positional[position]):
                    definition = self._definition(name, call.node, call.node, adds=True)
                    found.setdefault(name, []).append(definition)
        return found

    def _given(self, node: SgNode) -> Iterator[tuple[str, SgNode]]:
        """Yield the names that a node gives a value, each with that value."""
        left_field, right_field = self.grammar.definitions[node.kind()]
        left = node.field(left_field)
        right = node.field(right_field) if right_field else node.child(0)
        if left is None or right is None:
            return
        lefts, rights = _parts(left), _parts(right)
        if len(lefts) == len(rights) > 1:
            for one, value in zip(lefts, rights, strict=True):
                yield from ((name, value) for name in self._names_in(one))
        else:
            value = rights[0] if len(rights) == 1 else right
            yield from ((name, value) for name in self._names_in(left))

    def _names_in(self, target: SgNode) -> list[str]:
        """Return the names in what is assigned to; `self.x` and `a.b` as they are written."""
        if target.kind() in ("attribute", "member_expression", "selector_expression"):
            return [target.text()]
        if target.kind() in ("subscript", "subscript_expression", "index_expression"):
            return []
        return [node.text() for node in of_kinds(target, self.grammar.targets)]

    def _definition(self, name: str, value: SgNode, node: SgNode, *, adds: bool) -> Definition:
        around = node.ancestors()
        whole = span_of(self.root)
        scopes = (span_of(one) for one in around if one.kind() in self.grammar.functions)
        blocks = (span_of(one) for one in around if one.kind() in self.grammar.blocks)
        scope = whole if "." in name else next(scopes, whole)
        return Definition(name, value, span_of(node), scope, next(blocks, whole), adds)

    def reaching(self, name: str, use: Span) -> list[Definition]:
        """Return what a name may stand for at a place, the latest first.

        Those of the innermost function that gives it a value; of these, back from the place to the
        last that surely ran. Behind the place only where nothing stands in front, as in a loop or
        for what a module defines further down.
        """
        known = [one for one in self.definitions.get(name, ()) if one.scope.holds(use)]
        if not known:
            return []
        inner = max(one.scope.start for one in known)
        known = [one for one in known if one.scope.start == inner]
        before = [one for one in known if one.place.end <= use.start] or known
        found = []
        for one in reversed(before):
            found.append(one)
            if not one.adds and one.block.holds(use):
                break
        return found

    def function_around(self, node: SgNode) -> SgNode | None:
        """Return the innermost function that a node stands in."""
        return next((one for one in node.ancestors() if one.kind() in self.grammar.functions), None)


def _parts(node: SgNode) -> list[SgNode]:
    listed = {"pattern_list", "tuple_pattern", "expression_list", "tuple"}
    return [c for c in node.children() if c.is_named()] if node.kind() in listed else [node]


def _adds(node: SgNode) -> bool:
    operator = node.field("operator")
    return bool(operator and operator.text() in ("+=", ".="))


def _module(literal: SgNode) -> str:
    return literal.text().strip(_QUOTES).removeprefix("node:")


def _script_names(names: SgNode, module: str) -> Iterator[tuple[str, str]]:
    """Yield what the names of an import clause, or of a `require`, stand for."""
    if names.kind() == "identifier":
        yield names.text(), module
    for part in names.children():
        if part.kind() == "identifier" and names.kind() != "import_specifier":
            yield part.text(), module
        elif part.kind() == "import_specifier":
            name, alias = part.field("name"), part.field("alias")
            if name:
                yield (alias or name).text(), f"{module}.{name.text()}"
        elif part.kind() == "shorthand_property_identifier_pattern":
            yield part.text(), f"{module}.{part.text()}"
        elif part.kind() == "pair_pattern":
            key, value = part.field("key"), part.field("value")
            if key and value:
                yield value.text(), f"{module}.{key.text()}"
        elif part.kind() in ("named_imports", "namespace_import"):
            yield from _script_names(part, module)
