"""Whether a weakness only became harder to see for the rule that found it.

Two questions, neither of which proves anything, and both of which a model's disguises fail:
- Is what the finding calls (or assigns to) spoken of in new ways: as a value (`run = os.system`),
  in an import (`from os import system as run`), by its name in a string (`getattr(os, "sys" +
  "tem")`, `window["eval"]`), in a macro? For any language with a grammar.
- Do the rules of the same weakness see as much as before in the text as `respelled` writes it: with
  names, aliases and constant expressions resolved? For Python; asked by `findings.py`.
"""

import re
from collections import Counter
from collections.abc import Iterator

from qcn_indexer.functions import CALLS, NAMES
from qcn_indexer.tree import Tree, words
from tree_sitter import Node

from qcn_lsp.scan.finding import Finding

_CALLEES = ("function", "name", "constructor", "type", "method", "macro")
_MEMBERS = ("attribute", "property", "field", "name")
_ASSIGNED = frozenset({"assignment", "assignment_expression", "augmented_assignment"})
_STRINGS = frozenset(
    {"string", "string_literal", "interpreted_string_literal", "raw_string_literal"}
    | {"encapsed_string", "concatenated_string", "template_string", "char_literal"}
)
_JOINS = frozenset({"binary_operator", "binary_expression", "parenthesized_expression"})
_IMPORTING = re.compile(r"\b(?:import|require|from|use|using|include)\b.*")
_QUOTED = re.compile(r"[a-zA-Z]{0,2}(?P<quote>\"\"\"|'''|[\"'`])(?P<text>.*)(?P=quote)", re.DOTALL)


def disguised(finding: Finding, before: Tree, after: Tree) -> str | None:
    """Return how the change speaks of the finding's sink in a new way, in words, or None."""
    sinks = _sinks(before, finding)
    if not sinks:
        return None
    old, new = (Counter(_mentions(tree, sinks)) for tree in (before, after))
    more = new - old
    return f"`{min(more)}` is now reached by another name" if more else None


def _sinks(tree: Tree, finding: Finding) -> frozenset[str]:
    """The names that the finding's text calls or assigns to, and the modules they are of."""
    found: set[str] = set()
    first, last = tree.byte(finding.start), tree.byte(finding.end)
    imported = set(re.findall(r"\w+", "\n".join(_IMPORTING.findall(tree.text))))
    for node in tree.nodes(first, last):
        if node.end_byte <= first or (node.start_byte < first and node.type not in CALLS):
            continue
        target = _callee(node) if node.type in CALLS else None
        if node.type in _ASSIGNED:
            left = node.child_by_field_name("left")
            target = left if left is not None and left.children else None  # a member, no variable
        if target is not None and (name := _last(target)) is not None:
            found.add(words(name))
            if (module := _root(target)) != words(name) and module in imported:
                found.add(module)
    return frozenset(found)


def _mentions(tree: Tree, sinks: frozenset[str]) -> Iterator[str]:
    """Each sink that is named without being called, or assigned to, or looked into, there."""
    constants = _constants(tree.root, max(map(len, sinks)))
    for node in tree.nodes():
        if node.type in NAMES and words(node) in sinks and not _is_used(node):
            yield words(node)
        elif node.type == "preproc_arg":
            yield from (word for word in re.findall(r"\w+", words(node)) if word in sinks)
        elif (text := constants.get(node.id)) in sinks:
            around = None if node.parent is None else constants.get(node.parent.id)
            if around != text:  # else that is the same constant
                yield str(text)


def _is_used(node: Node) -> bool:
    """Whether a name is called, assigned to as a member, looked into, defined, or a parameter's."""
    parent = node.parent
    top = node
    while parent is not None and _last(parent) == node and parent.type not in CALLS:
        top, parent = parent, parent.parent
    if parent is None:
        return False
    if parent.type in CALLS:
        return _callee(parent) == top
    if parent.type in _ASSIGNED and top != node:
        return parent.child_by_field_name("left") == top
    if parent.type == "keyword_argument":
        return parent.child_by_field_name("name") == top
    if "import" in parent.type or parent.type in {"dotted_name", "use_declaration"}:
        return not _is_renamed(top)
    return any(
        parent.child_by_field_name(name) == top
        for name in ("object", "operand", "argument", "path", "scope")
        if parent.type not in {"return_statement", "unary_expression"}
    )


def _is_renamed(node: Node) -> bool:
    """Whether an import gives another name to this one, or takes it out of its module."""
    parent: Node | None = node
    while parent is not None:
        if parent.type in {"aliased_import", "import_specifier", "import_from_statement"}:
            return True
        parent = parent.parent
    return False


def _callee(call: Node) -> Node | None:
    for field in _CALLEES:
        if found := call.child_by_field_name(field):
            return found
    return None


def _last(node: Node) -> Node | None:
    """The last name of a dotted one: `system` of `os.system`."""
    while node.type not in NAMES:
        for field in _MEMBERS:
            if found := node.child_by_field_name(field):
                node = found
                break
        else:
            return None
    return node


def _root(node: Node) -> str:
    """The first name of a dotted one: `os` of `os.path.join`."""
    while node.named_children:
        node = node.named_children[0]
    return words(node)


def _constants(root: Node, longest: int) -> dict[int, str]:
    """The texts of strings, and of strings that are joined, by their nodes' ids.

    What is longer than `longest` is left out, with all that it is part of. Without recursion: a
    chain may have thousands of links.
    """
    found: dict[int, str] = {}
    pending = [(root, False)]
    while pending:
        node, are_children_known = pending.pop()
        joins = node.type == "concatenated_string" or (node.type in _JOINS and _is_join(node))
        text: str | None = None
        if joins and are_children_known:
            parts = [found.get(child.id) for child in node.named_children]
            known = [part for part in parts if part is not None]
            text = "".join(known) if parts and len(known) == len(parts) else None
        elif node.type in _STRINGS and not joins:
            quoted = _QUOTED.fullmatch(words(node))
            text = quoted["text"] if quoted else None
        if text is not None and len(text) <= longest:
            found[node.id] = text
        if not are_children_known:
            pending += [(node, True)] * joins
            pending += [(child, False) for child in node.children]
    return found


def _is_join(node: Node) -> bool:
    operator = node.child_by_field_name("operator")
    return operator is None or words(operator) in {"+", ".", ".."}
