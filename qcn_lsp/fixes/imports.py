"""Lines that only bring something in: which they are, and where further ones go."""

import re
from collections.abc import Iterable

from qcn_indexer.tree import Tree, words
from tree_sitter import Node

_IMPORTING = re.compile(
    r"""
    import\s.*|from\s+\S+\s+import\s.*|\#\s*include\s*[<"].*|using\s+[\w.:=\s]+;|use\s+.*;
    |(?:const|let|var)\s+[\w{},:\s]+=\s*require\(\s*["'][^"']+["']\s*\)[\w.]*;?|require(?:_relative)?\s.*
    |(?:[\w.]+\s+)?"[\w./-]+"
    """,
    re.VERBOSE,
)
_NODES = frozenset(
    {"import_statement", "import_from_statement", "future_import_statement", "import_declaration"}
    | {"preproc_include", "use_declaration", "using_directive", "package_clause"}
    | {"package_declaration", "namespace_use_declaration", "php_tag"}
)


def is_import(line: str) -> bool:
    """Whether a line does nothing but import."""
    return _IMPORTING.fullmatch(line.strip()) is not None


def with_imports(tree: Tree | None, text: str, lines: Iterable[str], line_end: str) -> str:
    """Return the text with import lines that it lacks below the ones that it has."""
    have = {line.strip() for line in text.splitlines()}
    lacking = [line for line in dict.fromkeys(map(str.strip, lines)) if line not in have]
    if not lacking:
        return text
    mark = int(text.startswith("\ufeff"))  # a byte order mark stays first
    place = max(_below_imports(tree) if tree is not None else 0, mark)
    if place > mark and not text.endswith(("\n", "\r"), 0, place):
        lacking.insert(0, "")
        return text[:place] + line_end.join(lacking) + text[place:]
    return text[:place] + "".join(line + line_end for line in lacking) + text[place:]


def _below_imports(tree: Tree) -> int:
    """The offset at which the first line below the imports begins."""
    last: Node | None = None
    for position, node in enumerate(tree.root.named_children):
        if node.type in _NODES or is_import(words(node)):
            last = node
        elif position == 0 and node.type == "expression_statement":
            inner = node.named_children
            if inner and inner[0].type == "string":  # a docstring, or "use strict"
                last = node
        elif node.type in {"comment", "hash_bang_line"} and last is None and position == 0:
            last = node if words(node).startswith("#!") else None
    if last is None:
        return 0
    end = tree.source.find(b"\n", max(last.end_byte - 1, 0))
    return tree.offset(end + 1 if end >= 0 else len(tree.source))
