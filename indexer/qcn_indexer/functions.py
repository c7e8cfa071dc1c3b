"""The functions of a text: where each is, what it is called, what others know of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tree_sitter import Node

from qcn_indexer.definitions import WRAPPERS, docstring_of
from qcn_indexer.tree import Tree, words

# Ways to name something without doing anything with it: the ends of dotted names.
NAMES = frozenset(
    {"identifier", "property_identifier", "field_identifier", "shorthand_property_identifier"}
    | {"shorthand_property_identifier_pattern", "name", "constant", "word", "type_identifier"}
)
CALLS = frozenset(
    {"call", "call_expression", "method_invocation", "new_expression", "object_creation_expression"}
    | {"function_call_expression", "member_call_expression", "scoped_call_expression", "command"}
    | {"invocation_expression", "function_call", "macro_invocation"}
)
_FUNCTIONS = frozenset(
    {"function_definition", "function_declaration", "generator_function_declaration"}
    | {"method_definition", "method_declaration", "constructor_declaration", "function_item"}
    | {"compact_constructor_declaration", "local_function_statement", "method", "singleton_method"}
    | {"property_declaration"}
)
_TYPES = frozenset(
    {"class_definition", "class_declaration", "abstract_class_declaration", "class", "module"}
    | {"interface_declaration", "enum_declaration", "record_declaration", "struct_declaration"}
    | {"class_specifier", "struct_specifier", "namespace_definition", "impl_item", "trait_item"}
    | {"internal_module", "trait_declaration", "mod_item", "namespace_declaration"}
)
_FUNCTION_VALUES = frozenset({"arrow_function", "function_expression", "generator_function"})
_VARIABLES = frozenset({"lexical_declaration", "variable_declaration"})
# What stands in the body of a function that is still to be written.
_PLACEHOLDER = re.compile(
    r"""pass | \.\.\. | return(?:\ (?:None|null|nil))?;?
      | raise\ NotImplementedError\b.* | (?:todo|unimplemented)!\(.*\);?
      | throw\ new\ (?:Error|NotImplementedException|UnsupportedOperationException)\(.*\);?
      | panic\(.*\)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Function:
    """A function or method of a text; offsets count its characters.

    `node` is what makes it one, `outer` that with its decorators, `export` or `const`.
    """

    tree: Tree
    node: Node
    outer: Node
    body: Node

    @property
    def name(self) -> str:
        """What it is called, in C++ with its class where that stands there."""
        return _name(self.node)

    @property
    def qualified(self) -> str:
        """Its name behind those of the types and functions that it is in."""
        names, node = [self.name], self.node.parent
        while node is not None:
            if _body(node) is not None:
                names.append(_name(node))
            elif node.type in _TYPES and (name := _type_name(node)):
                names.append(name)
            node = node.parent
        return ".".join(reversed(names))

    @property
    def start(self) -> int:
        """Where its first line begins, or itself where something else stands before it there."""
        return self.tree.line_start(self.outer.start_byte)

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.tree.offset(self.outer.end_byte)

    @property
    def comment(self) -> int:
        """Where the comment right above it begins, or `start`."""
        above = self.outer
        while (
            (one := above.prev_sibling) is not None
            and "comment" in one.type
            and one.end_point.row + (one.end_point.column > 0) == above.start_point.row
        ):
            above = one
        return self.tree.line_start(above.start_byte)

    @property
    def signature(self) -> str:
        """The code before the body."""
        return " ".join(_code_before(self.outer, self.body.start_byte))

    @property
    def is_public(self) -> bool:
        """Whether others may call it, as far as its declaration says."""
        node = self.node.parent
        while node is not None:
            if _body(node) is not None:
                return False  # inside a function
            node = node.parent
        return not _private(self.tree.language, self.outer, self.name)

    @property
    def is_stub(self) -> bool:
        """Whether its body says nothing yet."""
        if self.node.type == "variable_declarator" and self.body.type != "statement_block":
            return False  # an expression
        docstring = docstring_of(self.body)
        said = []
        for node in self.body.named_children:
            inner = node.named_children if node.type == "statement_list" else [node]
            said += [one for one in inner if "comment" not in one.type]
        if docstring is not None and said and said[0].start_byte == docstring.start_byte:
            del said[0]
        texts = list(map(words, said))
        return not texts or (len(texts) == 1 and _PLACEHOLDER.fullmatch(texts[0]) is not None)


def functions(tree: Tree) -> Iterator[Function]:
    """Yield the functions of a text, outer ones first."""
    pending = [tree.root]
    while pending:
        node = pending.pop()
        if (body := _body(node)) is not None:
            yield Function(tree, node, _whole(node), body)
        pending.extend(reversed(node.named_children))


def innermost_function(tree: Tree, first: int, last: int) -> Function | None:
    """Return the innermost function that holds the characters `first` and `last`, or None."""
    node = tree.root.descendant_for_byte_range(tree.byte(first), tree.byte(last))
    while node is not None:
        made_one = node if _body(node) is not None else _wrapped(node)
        if made_one is not None and (body := _body(made_one)) is not None:
            return Function(tree, made_one, _whole(made_one), body)
        node = node.parent
    return None


def _body(node: Node) -> Node | None:
    """The body of what makes a function with a name, or None."""
    if node.type in _FUNCTIONS:
        body = node.child_by_field_name("body") or node.child_by_field_name("accessors")
    elif node.type == "variable_declarator":
        value = node.child_by_field_name("value")
        is_function = value is not None and value.type in _FUNCTION_VALUES
        body = value.child_by_field_name("body") if value is not None and is_function else None
    else:
        return None
    return body if body is not None and _name(node) else None


def _wrapped(node: Node) -> Node | None:
    """The one function that decorators, `export` or `const` stand around."""
    while node.type in WRAPPERS | _VARIABLES:
        inner = [
            one
            for one in node.named_children
            if one.type in _FUNCTIONS | _VARIABLES | WRAPPERS | {"variable_declarator"}
        ]
        if len(inner) != 1:
            return None
        (node,) = inner
    return node


def _whole(node: Node) -> Node:
    """The definition with what belongs to it: its decorators, `export`, `const`."""
    parent = node.parent
    if node.type == "variable_declarator" and parent is not None:
        if sum(child.type == "variable_declarator" for child in parent.named_children) > 1:
            return node
        node, parent = parent, parent.parent
    while parent is not None and parent.type in WRAPPERS:
        node, parent = parent, parent.parent
    return node


def _code_before(node: Node, end: int) -> Iterator[str]:
    """The words of a node up to a byte, without comments."""
    pending = [node]
    while pending:
        node = pending.pop()
        if node.start_byte >= end or "comment" in node.type:
            continue
        if not node.children or "string" in node.type:
            yield words(node)
        else:
            pending.extend(reversed(node.children))


def _name(node: Node) -> str:
    """What a function is called; in C the name is deep inside the declarator."""
    named = node.child_by_field_name("name")
    if named is not None:
        return words(named)
    inner = node.child_by_field_name("declarator")
    while inner is not None and inner.type not in NAMES:
        if inner.type in {"qualified_identifier", "destructor_name", "operator_name"}:
            return words(inner)
        inner = inner.child_by_field_name("declarator") or next(
            (child for child in inner.named_children if "declarator" in child.type), None
        )
    return words(inner) if inner is not None else ""


def _type_name(node: Node) -> str:
    named = node.child_by_field_name("type" if node.type == "impl_item" else "name")
    return words(named) if named is not None else ""


def _private(language: str, node: Node, name: str) -> bool:
    if language == "python":
        return name.startswith("_") and not name.endswith("__")
    if language == "go":
        return not name[:1].isupper()
    head = words(node).partition("{")[0].split()
    if language in {"c", "cpp"}:
        return "static" in head
    if language == "rust":
        return not any(word.startswith("pub") for word in head)
    return "private" in head or name.startswith("#")
