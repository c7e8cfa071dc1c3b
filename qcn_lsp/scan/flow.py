"""Where a value comes from, as far as one text shows: the questions that rules ask of arguments.

    constant    nothing but literals, and names that stand for such
    variable    anything else
    built       a string put together from parts of which one is not constant
    untrusted   something of it comes from outside: a request, the command line, standard input
    measured    a text of C whose length was compared in front, or allocated with one more
    anchored    an address whose host, or a path whose first folder, is constant
    made:NAME   what the call of that name (a pattern, spelled out as the imports say) returned

A name is followed to the values that it may have been given before, in its own function or around
it, not through calls. What a sanitizer returns is trusted; so is a name that a condition has
looked at before, where the rule says that this is how it is checked, and one that was given to a
call which by its name checks it and whose answer nobody takes (`validate_name(name)`).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from ast_grep_py import SgNode

from qcn_lsp.scan.facts import Facts
from qcn_lsp.scan.source import Source, Span, of_kinds, span_of

_DEEPEST = 8  # names followed one after another
_CONSTANT_NAME = re.compile(r"(?:[\w.]*\.)?_?[A-Z][A-Z0-9_]+")
_FORMATS = re.compile(
    r".*\.format|(?:fmt|log)\.Sprintf?(?:ln)?|String\.format|.*\.formatted|.*\.concat|"
    r"s(?:n)?printf|strn?c(?:at|py)|.*\.join|.*\.replace|textwrap\.dedent|.*\.strip|str|text|sqlalchemy\.text"
)
_ALLOCATORS = re.compile(r"(?:std::)?(?:malloc|calloc|realloc)|(?:__builtin_)?alloca")
_QUOTES = "\"'`"
_ANCHOR = re.compile(r"(?:[a-z+]+:)?//[^/\s]+/|/[^/\\]")
_TRIVIAL_CHECK = re.compile(
    r"(?:not\s+|!)?(?:[\w.]+(?:\s*(?:is not|is|[=!]==?)\s*(?:None|null|nil|\"\"|''))?"
    # That something is there, or how its name ends, tells nothing of where it lies.
    r"|(?:os\.path\.|fs\.)(?:l?exists|isdir|isfile|islink|existsSync)\([\w.]+\)"
    r"|[\w.]+\.(?:exists|is_dir|is_file)\(\)|[\w.]+\.(?:endswith|endsWith)\(['\"][^'\"]*['\"]\))"
)


@dataclass
class Flow:
    """Answers the questions for one text; `via` collects the values that names were followed to."""

    facts: Facts
    sanitizers: re.Pattern[str] | None = None
    checked: bool = False
    via: list[Span] = field(default_factory=list)

    @property
    def source(self) -> Source:
        """The text."""
        return self.facts.source

    def asked(self, question: str, node: SgNode) -> bool:
        """Whether the answer to `question` is yes for a node.

        A value nested too deeply to be followed is taken for what a rule looks for.
        """
        try:
            if question.startswith("made:"):
                return self.made(re.compile(question[5:]), node)
            return self._answers[question](node)
        except RecursionError:
            return question in ("variable", "built")

    @property
    def _answers(self) -> dict[str, Callable[[SgNode], bool]]:
        return {
            "constant": self.constant,
            "variable": lambda node: not self.constant(node),
            "built": self.built,
            "untrusted": self.untrusted,
            "measured": self.measured,
            "anchored": lambda node: bool(_ANCHOR.match(self.beginning(node))),
        }

    # --- Constant ------------------------------------------------------------------------------

    def constant(self, node: SgNode, depth: int = 0) -> bool:
        """Whether nothing of the value can differ from run to run."""
        grammar = self.source.grammar
        kind = node.kind()
        if kind in grammar.literals:
            return True
        if kind in grammar.strings:
            return all(
                self._constant_children(part, depth)
                for part in of_kinds(node, grammar.interpolations)
            )
        if kind in grammar.operators | grammar.wrappers | grammar.collections:
            return self._constant_children(node, depth)
        if kind in grammar.choices:
            return all(self.constant(part, depth) for part in self._chosen_from(node))
        text = node.text()
        if _CONSTANT_NAME.fullmatch(text):
            return True
        if kind in grammar.names and self._validated(node):
            return True
        if kind in grammar.names and depth < _DEEPEST:
            values = self.source.reaching(text, span_of(node))
            return bool(values) and all(
                self.constant(one.value, depth + 1) and not _is_loop(one.value) for one in values
            )
        return self._sanitized(node)

    def _chosen_from(self, node: SgNode) -> list[SgNode]:
        """Return the values of a choice, without what chooses between them."""
        parts = [part for part in node.children() if part.is_named() and part.kind() != "comment"]
        if len(parts) < 3:  # `a ?: b` of GNU C, where what is asked is a value too
            return parts
        condition = self.source.grammar.choices[node.kind()]
        return parts[:condition] + parts[condition + 1 :]

    def _constant_children(self, node: SgNode, depth: int) -> bool:
        return all(self.constant(part, depth) for part in node.children() if _tells(part))

    # --- Built ---------------------------------------------------------------------------------

    def built(self, node: SgNode, depth: int = 0) -> bool:
        """Whether the value is a string put together with something that is not constant."""
        grammar = self.source.grammar
        kind = node.kind()
        if kind in grammar.strings:
            parts = of_kinds(node, grammar.interpolations)
            return any(not self._constant_children(part, depth) for part in parts)
        if kind in grammar.wrappers:
            return any(self.built(part, depth) for part in node.children() if part.is_named())
        if kind in grammar.choices:
            return any(self.built(part, depth) for part in self._chosen_from(node))
        if kind in grammar.operators:
            if not _is_joining(node):
                return any(self.built(part, depth) for part in node.children() if part.is_named())
            return self._has_text(node, depth) and not self.constant(node, depth)
        if kind in grammar.calls and not self._sanitized(node):
            return self._formats(node, depth)
        if kind in grammar.names | {"attribute"} and depth < _DEEPEST:
            for one in self.source.reaching(node.text(), span_of(node)):
                joined = one.adds and not self.constant(one.value, depth + 1)
                if joined or self.built(one.value, depth + 1):
                    self.via.append(one.place)
                    return True
        return False

    def _formats(self, node: SgNode, depth: int) -> bool:
        """Whether a call puts a string together from others."""
        call = self.source.call_at(node)
        if call is None or not _FORMATS.fullmatch(call.name):
            return False
        receiver = node.field("object") or call.callee.child(0)
        parts = [*call.positional, *call.named.values()]
        if call.name.endswith(".join") and self.source.grammar.name != "python" and receiver:
            return not self.constant(receiver, depth)  # the list; in Python that is an argument
        if call.name.endswith(".replace"):
            text = receiver is not None and receiver.kind() in self.source.grammar.strings
            return text and len(parts) == 2 and not self.constant(parts[1], depth)
        if call.name.endswith((".format", ".formatted")):
            return any(not self.constant(part, depth) for part in parts)
        if len(parts) == 1 and call.name in ("text", "sqlalchemy.text", "str", "textwrap.dedent"):
            return self.built(parts[0], depth)
        if call.name.endswith(".strip"):
            return receiver is not None and self.built(receiver, depth)
        return any(not self.constant(part, depth) for part in parts)

    def made(self, wanted: re.Pattern[str], node: SgNode, depth: int = 0) -> bool:
        """Whether the value is, or may be, what a call of that name returned."""
        grammar = self.source.grammar
        if node.kind() in grammar.calls:
            call = self.source.call_at(node)
            return call is not None and bool(wanted.fullmatch(call.name))
        if node.kind() in grammar.names | {"attribute"} and depth < _DEEPEST:
            values = self.source.reaching(node.text(), span_of(node))
            return any(self.made(wanted, one.value, depth + 1) for one in values)
        return False

    def measured(self, node: SgNode) -> bool:
        """Whether code in front, in the same function, makes sure that there is room for a text."""
        length = rf"(?:str|wcs)len\s*\(\s*{re.escape(node.text())}\s*\)"
        around = self.source.function_around(node) or self.source.root
        scope, place = span_of(around), span_of(node)
        compared = re.compile(
            rf"{length}[\s\d+]*[<>]=?+\s*+(?![01]\b)|"
            rf"(?<![\w.])(?![01]\s*[<>])[\w.]+\)*\s*[<>]=?\s*{length}"
        )
        if any(
            end <= place.start and compared.search(text)
            for end, text in self.facts.conditions(around)
        ):
            return True
        roomy = re.compile(rf"{length}\s*\+|\+\s*{length}")
        return any(
            scope.holds(call)
            and call.end <= place.start
            and roomy.search(self.source.text, call.start, call.end)
            for call in self.facts.calls_of(_ALLOCATORS)
        )

    def _has_text(self, node: SgNode, depth: int) -> bool:
        """Whether a string literal, or a name that stands for one, is among the operands."""
        grammar = self.source.grammar
        for part in node.children():
            if part.kind() in grammar.strings:
                return True
            if part.kind() in grammar.operators | grammar.wrappers and self._has_text(part, depth):
                return True
            if part.kind() in grammar.names and depth < _DEEPEST:
                values = self.source.reaching(part.text(), span_of(part))
                if any(one.value.kind() in grammar.strings for one in values):
                    return True
                if _CONSTANT_NAME.fullmatch(part.text()):
                    return True
        return False

    def beginning(self, node: SgNode, depth: int = 0) -> str:
        """Return the text that the value surely begins with; a constant's name as `//name/`."""
        grammar = self.source.grammar
        kind = node.kind()
        if kind in grammar.strings:
            holes = of_kinds(node, grammar.interpolations)
            end = span_of(holes[0]).start if holes else span_of(node).end
            literal = self.source.text[span_of(node).start : end].lstrip("rbfuRBFU").lstrip(_QUOTES)
            if literal or not holes:
                return literal
            inner = next((part for part in holes[0].children() if part.is_named()), None)
            return self.beginning(inner, depth) if inner else ""
        if kind in grammar.operators | grammar.wrappers:
            first = next((part for part in node.children() if part.is_named()), None)
            return self.beginning(first, depth) if first else ""
        if _CONSTANT_NAME.fullmatch(node.text()):
            return f"//{node.text()}/"
        if kind in grammar.names and depth < _DEEPEST:
            values = self.source.reaching(node.text(), span_of(node))
            return self.beginning(values[-1].value, depth + 1) if values else ""
        return ""

    # --- Untrusted -----------------------------------------------------------------------------

    def untrusted(self, node: SgNode, depth: int = 0, seen: frozenset[Span] = frozenset()) -> bool:
        """Whether something of the value comes from outside and nothing has made it harmless."""
        whole = span_of(node)
        if whole in seen or depth > _DEEPEST:
            return False
        if node.kind() in self.source.grammar.choices:
            parts = self._chosen_from(node)
            return any(self.untrusted(part, depth, seen | {whole}) for part in parts)
        clean = [span for span in self._clean if whole.holds(span) or span.holds(whole)]
        if any(span.holds(whole) for span in clean):
            return False
        for origin in self.facts.origins:
            if whole.holds(origin) and not any(span.holds(origin) for span in clean):
                return True
        for name in self._names(node):
            place = span_of(name)
            if any(span.holds(place) for span in clean):
                continue
            if (self.checked and self._looked_at(name)) or self._validated(name):
                continue
            if self._is_handlers_parameter(name):
                return True
            for one in self.source.reaching(name.text(), place):
                if self.untrusted(one.value, depth + 1, seen | {whole}):
                    self.via.append(one.place)
                    return True
        return False

    def _names(self, node: SgNode) -> list[SgNode]:
        return of_kinds(node, self.source.grammar.names)

    @cached_property
    def _clean(self) -> list[Span]:
        own = self.facts.calls_of(self.sanitizers) if self.sanitizers else []
        return own + self.facts.clean

    def _sanitized(self, node: SgNode) -> bool:
        return span_of(node) in self._clean

    def _is_handlers_parameter(self, name: SgNode) -> bool:
        """Whether a name is a parameter of a function that a web framework calls."""
        if not self.facts.outside.handlers:
            return False
        function = self.source.function_around(name)
        parameters = function.field("parameters") if function else None
        if function is None or parameters is None:
            return False
        if not re.search(rf"\b{re.escape(name.text())}\b", parameters.text()):
            return False
        decorated = function.parent()
        head = parameters.text()
        if decorated is not None and decorated.kind() == "decorated_definition":
            head = decorated.text()[: span_of(function).start - span_of(decorated).start]
        elif self.source.grammar.name != "java":
            return False
        if not re.search(self.facts.outside.handlers, head):
            return False
        return self.source.grammar.name != "java" or bool(
            re.search(rf"(?:{self.facts.outside.handlers})[^,]*\b{re.escape(name.text())}\b", head)
        )

    def _looked_at(self, name: SgNode) -> bool:
        """Whether a condition in front, in the same function, says more of a name than that it is.

        Or of a name that was made of it, as in `host = urlsplit(url).hostname`.
        """
        around = self.source.function_around(name) or self.source.root
        place = span_of(name)
        names = {name.text(), *self._made_of(name.text(), around)}
        word = re.compile(r"\b(?:" + "|".join(map(re.escape, sorted(names))) + r")\b")
        return any(
            end <= place.start and word.search(text) and not _TRIVIAL_CHECK.fullmatch(text)
            for end, text in self.facts.conditions(around)
        )

    def _validated(self, name: SgNode) -> bool:
        """Whether a call in front, in the same function, checks what the name stands for."""
        text, place = name.text(), span_of(name)
        return any(
            span_of(call.node).end <= place.start
            and any(one.text() == text for one in call.positional)
            and self.source.function_around(call.node) == self.source.function_around(name)
            for call in self.facts.checks
        )

    def _made_of(self, name: str, around: SgNode) -> Iterator[str]:
        scope = span_of(around)
        word = re.compile(rf"\b{re.escape(name)}\b")
        for other, values in self.source.definitions.items():
            if any(scope.holds(one.place) and word.search(one.value.text()) for one in values):
                yield other


def _tells(part: SgNode) -> bool:
    """Whether a child says something of a value: no bracket, operator or format."""
    return part.is_named() and part.kind() not in (
        "comment",
        "format_specifier",
        "type_conversion",
        "string_start",
        "string_end",
        "string_content",
        "string_fragment",
        "escape_sequence",
    )


def _is_joining(node: SgNode) -> bool:
    operator = node.field("operator")
    return operator is not None and operator.text() in ("+", "%")


def _is_loop(value: SgNode) -> bool:
    parent = value.parent()
    return parent is not None and parent.kind() in ("as_pattern",)
