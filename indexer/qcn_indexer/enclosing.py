"""The function around a place in a text, and what an edit may not change: by syntax trees.

Offsets count characters of the text. Where no grammar reads a file, or its text is too much for the
parser, there is no answer.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from tree_sitter import Node

from qcn_indexer.definitions import docstring_of
from qcn_indexer.functions import Function, innermost_function
from qcn_indexer.tree import Tree, tree_of, words

# What holds statements or members, so that a child of it is one.
_HOLDERS = frozenset(
    {"module", "program", "source_file", "translation_unit", "compilation_unit", "chunk"}
    | {"block", "class_body", "declaration_list", "field_declaration_list", "statement_block"}
    | {"compound_statement", "statement_list", "body_statement", "interface_body"}
)


def function_around(path: PurePosixPath, text: str, start: int, end: int) -> Function | None:
    """Return the innermost function that holds all from `start` to `end`, or None.

    On the white space of a line it is the line's text that counts; on a blank line also a function
    that ends above it without a body.
    """
    tree = tree_of(path, text)
    if tree is None:
        return None
    for first, last in _places(text, start, end):
        if found := innermost_function(tree, first, last):
            return found
    before = len(text[:start].rstrip())
    if text[before:start].count("\n") == 1 and _line(text, start).isspace():
        found = innermost_function(tree, before - 1, before - 1)
        return found if found and found.is_stub else None
    return None


def statement_around(
    path: PurePosixPath, text: str, start: int, end: int
) -> tuple[int, int] | None:
    """Return where the outermost statement that holds all from `start` to `end` lies, or None."""
    tree = tree_of(path, text)
    if tree is None:
        return None
    first, last = next(_places(text, start, end))
    node = tree.root.descendant_for_byte_range(tree.byte(first), tree.byte(last))
    while node is not None and node.parent is not None and node.parent.parent is not None:
        node = node.parent
    if node is None or node.parent is None:
        return None
    return tree.offset(node.start_byte), tree.offset(node.end_byte)


def smallest_statement(tree: Tree, start: int, end: int) -> tuple[int, int]:
    """Return where the smallest statement or member that holds those lies, or the whole text."""
    first, last = tree.byte(start), max(tree.byte(end), tree.byte(start) + 1)
    node = tree.root.descendant_for_byte_range(first, last - 1)
    while node is not None and node.parent is not None:
        if node.parent.type in _HOLDERS and node.is_named:
            return tree.offset(node.start_byte), tree.offset(node.end_byte)
        node = node.parent
    return 0, len(tree.text)


def syntax_errors(path: PurePosixPath, text: str) -> int | None:
    """Return at how many places the parser had to guess; None where there is no tree."""
    tree = tree_of(path, text)
    if tree is None:
        return None
    return sum(node.is_error or node.is_missing for node, _ in _walk(tree.root))


def code_alone(path: PurePosixPath, text: str) -> list[tuple[int, str]] | None:
    """Return what stands for the text's code, whatever its comments and documentation say."""
    tree = tree_of(path, text)
    if tree is None:
        return None
    code = []
    for node, depth in _walk(tree.root, passing_over_comments=True):
        code.append((depth, (not node.child_count and words(node)) or node.type))
    return code


def _places(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield what to look around: the range without white space, or the text at a cursor."""
    inside = text[start:end]
    if inside.strip():
        first = start + len(inside) - len(inside.lstrip())
        yield first, start + len(inside.rstrip()) - 1
        return
    line = text.rfind("\n", 0, start) + 1
    rest = text[start:].partition("\n")[0]
    if not text[line:start].strip() and rest.strip():
        start += len(rest) - len(rest.lstrip())
    behind = start > 0 and not text[start - 1].isspace()
    if behind and text[start : start + 1].strip():
        yield start, start
    if behind:
        yield start - 1, start - 1
    yield start, start


def _line(text: str, offset: int) -> str:
    start = text.rfind("\n", 0, offset) + 1
    return text[start:offset] + text[offset:].partition("\n")[0] + "\n"


def _walk(root: Node, *, passing_over_comments: bool = False) -> Iterator[tuple[Node, int]]:
    """Yield every node with its depth, in the order of the text."""
    pending = [(root, 0)]
    while pending:
        node, depth = pending.pop()
        yield node, depth
        children = node.children
        if passing_over_comments:
            docstring = docstring_of(node) if node.type in ("block", "module") else None
            children = [
                one
                for one in children
                if "comment" not in one.type
                and (docstring is None or one.start_byte != docstring.start_byte)
            ]
        pending.extend((child, depth + 1) for child in reversed(children))
