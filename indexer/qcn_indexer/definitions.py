"""What a file defines: each definition's names and its signature, in the order of the file.

A signature is the text of a definition up to its body, with its indentation; of a type or a group
of constants all of it, as far as that is short. What is defined inside a function is nobody
else's to use, and left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from tree_sitter import Node

from qcn_indexer.syntax import Grammar, grammar_language, grammar_of, parse
from qcn_indexer.tree import words

LONGEST_SIGNATURE = 12  # lines, of 200 characters at most: what is longer is cut there
LONGEST_LINE = 200
DEEPEST = 32  # definitions inside one another: deeper is no program that a person wrote

# Bodies of grammars that have no field of that name.
_BODIES = frozenset({"class_body", "field_declaration_list"})
# What stands around one definition and belongs to it.
WRAPPERS = frozenset({"decorated_definition", "export_statement", "template_declaration"})
_BODY_FIELDS = ("body", "accessors")
_NAME_FIELDS = ("name", "declarator", "left")
_NAMES = frozenset(
    {"identifier", "type_identifier", "field_identifier", "property_identifier", "name", "word"}
    | {"constant", "private_property_identifier", "namespace_identifier"}
)
# What is assigned to here is no new name.
_NO_NAMES = frozenset({"attribute", "subscript", "call"})
_NAMES_AT_MOST = 64  # of one group of constants


@dataclass(frozen=True, slots=True)
class Definition:
    """One definition: `depth` counts those around it."""

    names: tuple[str, ...]
    signature: str  # whole lines, a docstring's first among them, without the last line end
    line: int  # the first is 0
    depth: int


def definitions(path: PurePosixPath, text: str) -> list[Definition]:
    """Return what a file of this name and text defines; nothing where no grammar reads it."""
    language = grammar_language(path)
    root = parse(language, text) if language else None
    if root is None or language is None:
        return []
    return list(_Reader(grammar_of(language), text.encode("utf-8", "replace")).below(root))


class _Reader:
    def __init__(self, grammar: Grammar, source: bytes) -> None:
        self._grammar, self._source = grammar, source

    def below(self, root: Node) -> Iterator[Definition]:
        """The definitions among the descendants of `root` that are not inside functions."""
        pending = [(child, child, 0) for child in reversed(root.named_children)]
        while pending:
            node, start, depth = pending.pop()
            if node.type in self._grammar.defining:
                if definition := self._definition(node, start, depth):
                    yield definition
                inner = body_of(node) if node.type in self._grammar.holding else None
                depth += 1
            elif node.type in self._grammar.transparent:
                inner = node
            else:
                continue
            if inner is not None and depth <= DEEPEST:
                wraps = node.type in WRAPPERS
                pending.extend(
                    (child, start if wraps else child, depth)
                    for child in reversed(inner.named_children)
                )

    def _definition(self, node: Node, start: Node, depth: int) -> Definition | None:
        names = tuple(names_of(node))
        if not names:
            return None
        end = node.end_byte
        body = None if node.type in self._grammar.shown_whole else body_of(node)
        if body is not None:
            end = body.start_byte
        signature = self._lines(start.start_byte, end)
        if body is not None and (docstring := docstring_of(body)):
            signature += "\n" + self._lines(docstring.start_byte, docstring.end_byte).split("\n")[0]
        return Definition(names, signature, start.start_point.row, depth)

    def _lines(self, start: int, end: int) -> str:
        line = self._source.rfind(b"\n", 0, start) + 1
        if not self._source[line:start].strip():
            start = line
        text = self._source[start:end].decode("utf-8", "replace").rstrip()
        lines = text.split("\n")[:LONGEST_SIGNATURE]
        return "\n".join(line.rstrip()[:LONGEST_LINE] for line in lines)


def body_of(node: Node) -> Node | None:
    """What a definition holds, with a function that is a variable's value looked into."""
    for field in _BODY_FIELDS:
        if body := node.child_by_field_name(field):
            return body
    for child in node.named_children:
        if child.type in _BODIES:
            return child
        if child.type == "variable_declarator" and (value := child.child_by_field_name("value")):
            return value.child_by_field_name("body")
    return None


def docstring_of(body: Node) -> Node | None:
    """Python's, of which the first line is shown."""
    first = body.named_children[0] if body.type == "block" and body.named_children else None
    if first is not None and first.type == "expression_statement" and first.named_children:
        first = first.named_children[0]
    return first if first is not None and first.type == "string" else None


def names_of(node: Node) -> Iterator[str]:
    """What a definition is called: one name, or as many as a group of constants has."""
    pending, left = [node], _NAMES_AT_MOST
    while pending and left:
        node, left = pending.pop(), left - 1
        if node.type in _NAMES:
            yield words(node)
            continue
        if node.type in _NO_NAMES:
            continue
        for field in ("type",) if node.type == "impl_item" else _NAME_FIELDS:
            if named := node.children_by_field_name(field):
                pending.extend(reversed(named))
                break
        else:
            pending.extend(reversed(node.named_children))
