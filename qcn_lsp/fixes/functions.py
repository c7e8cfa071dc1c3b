"""The functions of a text: where each is, how it is called, and the part around a finding."""

from collections.abc import Iterator
from dataclasses import dataclass

from tree_sitter import Node

from qcn_lsp.fixes.tree import NAMES, Tree, words

_FUNCTIONS = frozenset(
    {"function_definition", "function_declaration", "generator_function_declaration"}
    | {"method_definition", "method_declaration", "constructor_declaration", "function_item"}
    | {"compact_constructor_declaration", "local_function_statement", "method", "singleton_method"}
)
_TYPES = frozenset(
    {"class_definition", "class_declaration", "abstract_class_declaration", "class", "module"}
    | {"interface_declaration", "enum_declaration", "record_declaration", "struct_declaration"}
    | {"class_specifier", "struct_specifier", "namespace_definition", "impl_item", "trait_item"}
    | {"internal_module", "trait_declaration", "mod_item", "namespace_declaration"}
)
_FUNCTION_VALUES = frozenset({"arrow_function", "function_expression", "generator_function"})
_WRAPPERS = frozenset({"decorated_definition", "export_statement", "template_declaration"})
# What holds statements or members, so that a child of it is one.
_HOLDERS = frozenset(
    {"module", "program", "source_file", "translation_unit", "compilation_unit", "chunk"}
    | {"block", "class_body", "declaration_list", "field_declaration_list", "statement_block"}
    | {"compound_statement", "statement_list", "body_statement", "interface_body"}
)


@dataclass(frozen=True)
class Function:
    """A function or method: characters `start` up to `end` with its decorators.

    `name` is qualified by its types and functions; `signature` is the code before the body.
    `public`: others may call it, as far as its declaration says.
    """

    name: str
    start: int
    end: int
    signature: str
    public: bool
    node: Node
    body: Node


def functions(tree: Tree) -> list[Function]:
    """Return the functions of a text, outer ones first."""
    return list(_below(tree))


def function_around(tree: Tree, start: int, end: int) -> Function | None:
    """Return the innermost function that holds characters `start` up to `end`, or None."""
    around = [one for one in functions(tree) if one.start <= start and end <= one.end]
    return max(around, key=lambda one: one.start, default=None)


def statement_around(tree: Tree, start: int, end: int) -> tuple[int, int]:
    """Return the characters of the smallest statement or member that holds those, or of all."""
    first, last = tree.byte(start), max(tree.byte(end), tree.byte(start) + 1)
    node = tree.root.descendant_for_byte_range(first, last - 1)
    while node is not None and node.parent is not None:
        if node.parent.type in _HOLDERS and node.is_named:
            return tree.offset(node.start_byte), tree.offset(node.end_byte)
        node = node.parent
    return 0, len(tree.text)


def _below(tree: Tree) -> Iterator[Function]:
    pending: list[tuple[Node, str, bool]] = [(tree.root, "", False)]
    while pending:
        node, prefix, inside = pending.pop()
        deeper, inner = prefix, inside
        if (found := _function(tree, node, prefix, inside)) is not None:
            yield found
            deeper, inner = found.name + ".", True
        elif node.type in _TYPES and (name := _type_name(node)):
            deeper = f"{prefix}{name}."
        pending.extend((child, deeper, inner) for child in reversed(node.named_children))


def _function(tree: Tree, node: Node, prefix: str, inside: bool) -> Function | None:
    body: Node | None
    if node.type in _FUNCTIONS:
        body = node.child_by_field_name("body")
    elif node.type == "variable_declarator":
        value = node.child_by_field_name("value")
        is_function = value is not None and value.type in _FUNCTION_VALUES
        body = value.child_by_field_name("body") if value is not None and is_function else None
    else:
        return None
    name = _name(node)
    if body is None or not name:
        return None
    outer = _whole(node)
    return Function(
        name=prefix + name,
        start=tree.offset(outer.start_byte),
        end=tree.offset(outer.end_byte),
        signature=" ".join(_code_before(outer, body.start_byte)),
        public=not inside and not _private(tree.language, outer, name),
        node=node,
        body=body,
    )


def _whole(node: Node) -> Node:
    """The definition with what belongs to it: its decorators, `export`, `const`."""
    parent = node.parent
    if node.type == "variable_declarator" and parent is not None:
        if sum(child.type == "variable_declarator" for child in parent.named_children) > 1:
            return node
        node, parent = parent, parent.parent
    while parent is not None and parent.type in _WRAPPERS:
        node, parent = parent, parent.parent
    return node


def _code_before(node: Node, end: int) -> Iterator[str]:
    """The words of a node up to a byte, without comments."""
    if node.start_byte >= end or "comment" in node.type:
        return
    if not node.children or "string" in node.type:
        yield words(node)
        return
    for child in node.children:
        yield from _code_before(child, end)


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
