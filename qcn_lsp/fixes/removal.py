"""Whether a fix removes what the code does, in place of doing it safely.

A function may not vanish, nor its body shrink to nothing but an answer; and a call may only go if
other code comes. What a text does cannot be told from its tree: these are the ways in which a model
was seen to make a finding disappear together with the feature.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from qcn_indexer.functions import CALLS, Function, functions
from qcn_indexer.tree import Tree, words
from tree_sitter import Node

_COMMENTS = frozenset({"comment", "line_comment", "block_comment"})
_TRIVIAL = frozenset(
    {"pass_statement", "raise_statement", "throw_statement", "break_statement", "empty_statement"}
    | {"continue_statement", "string", "ellipsis"}
)
_PLAIN_VALUES = frozenset(
    {"none", "true", "false", "null", "nil", "undefined", "integer", "float", "number"}
    | {"string", "null_literal", "decimal_integer_literal", "number_literal", "string_literal"}
    | {"int_literal", "interpreted_string_literal", "boolean", "dictionary", "list", "tuple"}
    | {"object", "array", "expression_list", "unary_operator", "unary_expression"}
)


def removed_feature(before: Tree, after: Tree) -> str | None:
    """Return what the change removes, in words, or None."""
    old, new = list(functions(before)), list(functions(after))
    if missing := _names(old) - _names(new):
        return f"`{min(missing)}` is gone"
    by_name: dict[str, list[Function]] = {}
    for one in new:
        by_name.setdefault(one.qualified, []).append(one)
    for one in old:
        now = by_name[one.qualified].pop(0)
        if words(one.body) == words(now.body):
            continue
        if _only_answers(now.body) and not _only_answers(one.body):
            return f"nothing is left of the body of `{one.qualified}`"
    return _removed_call(before.root, after.root)


def _removed_call(before: Node, after: Node) -> str | None:
    """What is no longer called, if nothing but refusals and plain answers came for it."""
    was, now = Counter(_calls(before)), Counter(_calls(after))
    gone = was - now
    if not gone or sum(now.values()) >= sum(was.values()):
        return None
    added = Counter(_code(after)) - Counter(_code(before))
    statements = Counter(_trivial(after)) - Counter(_trivial(before))
    of_answers = Counter(word for statement in statements for word in statement.split("\0"))
    if added - of_answers:
        return None
    return f"`{_short(next(iter(gone)))}` is not called any more, and nothing in its place"


def _names(found: Iterable[Function]) -> Counter[str]:
    return Counter(one.qualified for one in found)


def _only_answers(body: Node) -> bool:
    """Whether a body does nothing but refuse, or answer with a plain value."""
    if body.type in {"call_expression", "parenthesized_expression"}:  # of an arrow function
        return False
    statements = [child for child in body.named_children if child.type not in _COMMENTS]
    if len(statements) == 1 and statements[0].type == "statement_list":  # Go's
        statements = [one for one in statements[0].named_children if one.type not in _COMMENTS]
    return all(map(_is_answer, statements))


def _is_answer(statement: Node) -> bool:
    if statement.type in _TRIVIAL:
        return True
    if statement.type == "expression_statement":
        inner = statement.named_children
        return len(inner) == 1 and _is_answer(inner[0])
    if statement.type == "return_statement":
        return not any(node.type in CALLS for node in _all(statement)) and all(
            value.type in _PLAIN_VALUES for value in statement.named_children
        )
    return False


def _trivial(root: Node) -> Iterator[str]:
    """The words of each refusing statement, parted by NULs."""
    for node in _all(root):
        if node.type in _TRIVIAL | {"return_statement"} and not (
            node.type == "return_statement" and not _is_answer(node)
        ):
            yield "\0".join(_code(node))


def _calls(root: Node) -> Iterator[str]:
    """What is called, as it is written there."""
    for node in _all(root):
        if node.type in CALLS:
            callee = node.child_by_field_name("function") or node.child_by_field_name("name")
            yield words(callee or node)


def _code(root: Node) -> Iterator[str]:
    """The words of the code, without comments and without what only parts them."""
    for node in _all(root):
        if node.type in _COMMENTS or (node.parent and node.parent.type in _COMMENTS):
            continue
        if not node.children and any(map(str.isalnum, text := words(node))):
            yield text


def _all(root: Node) -> Iterator[Node]:
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(reversed(node.children))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
