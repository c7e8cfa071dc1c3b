"""A text's syntax tree with offsets in characters.

Bounded as `syntax.py` is: a text that is too long, or keeps the parser busy, has no tree.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from tree_sitter import Node

from qcn_indexer.syntax import grammar_language, parse


@dataclass(frozen=True)
class Tree:
    """The tree of a text in a language that a grammar reads."""

    language: str
    text: str
    source: bytes
    root: Node

    def offset(self, byte: int) -> int:
        """Return the character at a byte of the source."""
        if len(self.source) == len(self.text):
            return byte
        return len(self.source[:byte].decode("utf-8", "replace"))

    def byte(self, offset: int) -> int:
        """Return the byte at which a character begins."""
        if len(self.source) == len(self.text):
            return offset
        return len(self.text[:offset].encode("utf-8", "replace"))

    def line_start(self, byte: int) -> int:
        """Return the character that begins a byte's line, where nothing stands before it there."""
        line = self.source.rfind(b"\n", 0, byte) + 1
        return self.offset(byte if self.source[line:byte].strip() else line)

    def nodes(self, start: int = 0, end: int | None = None) -> Iterator[Node]:
        """Yield every node that touches the bytes from `start` to `end`, outer ones first."""
        pending = [self.root]
        while pending:
            node = pending.pop()
            if end is not None and (node.end_byte <= start or node.start_byte >= end):
                continue
            yield node
            pending.extend(reversed(node.children))


def tree_of(path: PurePosixPath, text: str) -> Tree | None:
    """Return the tree of a text, or None where no grammar reads it in time."""
    language = grammar_language(path)
    root = parse(language, text) if language else None
    if language is None or root is None:
        return None
    return Tree(language, text, text.encode("utf-8", "replace"), root)


def words(node: Node) -> str:
    """Return a node's text."""
    return (node.text or b"").decode("utf-8", "replace")
