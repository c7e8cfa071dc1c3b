"""The function around a place in a text, and what an edit may not change: by syntax trees.

Offsets count characters of the text. Where no grammar reads a file, or its text is too much for the
parser, there is no answer.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from tree_sitter import Node

from qcn_indexer.definitions import WRAPPERS, body_of, docstring_of, names_of
from qcn_indexer.syntax import Grammar, grammar_language, grammar_of, parse

# What stands in the body of a function that is still to be written.
_PLACEHOLDER = re.compile(
    r"""pass | \.\.\. | return(?:\ (?:None|null|nil))?;?
      | raise\ NotImplementedError\b.* | (?:todo|unimplemented)!\(.*\);?
      | throw\ new\ (?:Error|NotImplementedException|UnsupportedOperationException)\(.*\);?
      | panic\(.*\)""",
    re.VERBOSE | re.DOTALL,
)
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True)
class Function:
    """A function, from the start of its first line where nothing else stands on that.

    `comment` is where the comment right above it begins, or `start`. `is_stub`: its body says
    nothing yet.
    """

    name: str
    start: int
    end: int
    comment: int
    is_stub: bool


def function_around(path: PurePosixPath, text: str, start: int, end: int) -> Function | None:
    """Return the innermost function that holds all from `start` to `end`, or None.

    On the white space of a line it is the line's text that counts; on a blank line also a function
    that ends above it without a body.
    """
    language = grammar_language(path)
    root = parse(language, text) if language else None
    if root is None or language is None:
        return None
    reader = _Reader(grammar_of(language), text)
    for first, last in _places(text, start, end):
        if found := reader.function(root, first, last):
            return found
    before = len(text[:start].rstrip())
    if text[before:start].count("\n") == 1 and _line(text, start).isspace():
        found = reader.function(root, before - 1, before - 1)
        return found if found and found.is_stub else None
    return None


def statement_around(
    path: PurePosixPath, text: str, start: int, end: int
) -> tuple[int, int] | None:
    """Return where the outermost statement that holds all from `start` to `end` lies, or None."""
    language = grammar_language(path)
    root = parse(language, text) if language else None
    if root is None or language is None:
        return None
    first, last = next(_places(text, start, end))
    return _Reader(grammar_of(language), text).statement(root, first, last)


def syntax_errors(path: PurePosixPath, text: str) -> int | None:
    """Return at how many places the parser had to guess; None where there is no tree."""
    language = grammar_language(path)
    root = parse(language, text) if language else None
    if root is None:
        return None
    return sum(node.is_error or node.is_missing for node, _ in _walk(root))


def code_alone(path: PurePosixPath, text: str) -> list[tuple[int, str]] | None:
    """Return what stands for the text's code, whatever its comments and documentation say."""
    language = grammar_language(path)
    root = parse(language, text) if language else None
    if root is None:
        return None
    source = text.encode("utf-8", "replace")
    code = []
    for node, depth in _walk(root, passing_over_comments=True):
        leaf = source[node.start_byte : node.end_byte] if not node.child_count else b""
        code.append((depth, leaf.decode("utf-8", "replace") or node.type))
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


class _Reader:
    def __init__(self, grammar: Grammar, text: str) -> None:
        self._grammar, self._text = grammar, text
        self._source = text.encode("utf-8", "replace")

    def function(self, root: Node, first: int, last: int) -> Function | None:
        """Return the innermost function that holds the characters `first` to `last`."""
        node = self._holding(root, first, last)
        while node is not None and not self._is_function(node):
            node = self._wrapped(node) or node.parent
        return None if node is None else self._described(node)

    def statement(self, root: Node, first: int, last: int) -> tuple[int, int] | None:
        """Return the range of the child of `root` that holds the characters `first` to `last`."""
        node = self._holding(root, first, last)
        while node is not None and node.parent is not None and node.parent.parent is not None:
            node = node.parent
        if node is None or node.parent is None:
            return None
        return self._offset(node.start_byte), self._offset(node.end_byte)

    def _holding(self, root: Node, first: int, last: int) -> Node | None:
        begin = len(self._text[:first].encode("utf-8", "replace"))
        end = len(self._text[:last].encode("utf-8", "replace"))
        return root.descendant_for_byte_range(begin, end)

    def _is_function(self, node: Node) -> bool:
        grammar = self._grammar
        kinds = grammar.defining - grammar.holding - grammar.shown_whole
        return node.type in kinds and body_of(node) is not None

    def _wrapped(self, node: Node) -> Node | None:
        """Return the function that a decorator or an `export` stands around."""
        if node.type not in WRAPPERS:
            return None
        return next((one for one in node.named_children if self._is_function(one)), None)

    def _described(self, node: Node) -> Function:
        body = body_of(node)
        assert body is not None  # or it would be no function
        outer = node
        while outer.parent is not None and outer.parent.type in WRAPPERS:
            outer = outer.parent
        above = outer
        while (
            (one := above.prev_sibling) is not None
            and "comment" in one.type
            and one.end_point.row + (one.end_point.column > 0) == above.start_point.row
        ):
            above = one
        return Function(
            name=next(names_of(node), "")[:_LONGEST_NAME],
            start=self._line_start(outer.start_byte),
            end=self._offset(node.end_byte),
            comment=self._line_start(above.start_byte),
            is_stub=self._says_nothing(body),
        )

    def _says_nothing(self, body: Node) -> bool:
        docstring = docstring_of(body)
        said = []
        for node in body.named_children:
            inner = node.named_children if node.type == "statement_list" else [node]
            said += [one for one in inner if "comment" not in one.type]
        if docstring is not None and said and said[0].start_byte == docstring.start_byte:
            del said[0]
        texts = [self._source[one.start_byte : one.end_byte].decode("utf-8") for one in said]
        return not texts or (len(texts) == 1 and _PLACEHOLDER.fullmatch(texts[0]) is not None)

    def _line_start(self, byte: int) -> int:
        line = self._source.rfind(b"\n", 0, byte) + 1
        return self._offset(byte if self._source[line:byte].strip() else line)

    def _offset(self, byte: int) -> int:
        return len(self._source[:byte].decode("utf-8", "replace"))


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
