"""Brackets in source code, found without parsing it.

Good enough for every language: strings that end on their line and comments are skipped, what is
doubtful is read as code. The filters are written so that a wrong count keeps text.
"""

import re
from collections.abc import Iterator

from qcn_lsp.postprocess.context import Context

# Brackets that are open at once, of which no person writes more: all are compared with all.
_DEEPEST = 200
CLOSER_OF = {"(": ")", "[": "]", "{": "}"}
_CLOSERS = frozenset(CLOSER_OF.values())

# fmt: off
_HASH_COMMENTS = frozenset({
    "python", "ruby", "shellscript", "perl", "r", "yaml", "toml", "dockerfile", "makefile",
    "cmake", "elixir", "julia", "nix",
})
_SLASH_COMMENTS = frozenset({
    "c", "cpp", "csharp", "java", "javascript", "javascriptreact", "typescript",
    "typescriptreact", "go", "rust", "swift", "kotlin", "scala", "dart", "php", "objective-c",
    "objective-cpp", "groovy", "zig", "jsonc",
})
# fmt: on
_STRING = r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|`(?:\\.|[^`\\\n])*`"


def brackets(text: str, language_id: str) -> Iterator[tuple[int, str]]:
    """Yield (index, bracket) for each bracket of `text` outside strings and comments."""
    comment = {True: r"|\#[^\n]*", False: ""}[language_id in _HASH_COMMENTS]
    if language_id in _SLASH_COMMENTS:
        comment = r"|//[^\n]*|/\*.*?(?:\*/|\Z)"
    for found in re.finditer(rf"{_STRING}{comment}|[()\[\]{{}}]", text, re.DOTALL):
        if len(found.group()) == 1 and found.group() in "()[]{}":
            yield found.start(), found.group()


def balance(
    text: str, language_id: str, *, lead: str = ""
) -> tuple[list[str], list[tuple[int, str]]]:
    """Return the closers that `text` leaves due, innermost last, and its own stray closers.

    A stray closer is one whose opener is not in `text`, given with its index. An opener that is
    closed by the wrong kind counts as forgotten. `lead` stands before `text` on its line: it
    decides what is inside a string, and its own brackets are not counted.
    """
    due: list[str] = []
    stray: list[tuple[int, str]] = []
    for index, bracket in brackets(lead + text, language_id):
        if index < len(lead):
            continue
        if bracket not in _CLOSERS:
            due.append(CLOSER_OF[bracket])
        elif bracket in due:
            while due.pop() != bracket:
                pass
        else:
            stray.append((index - len(lead), bracket))
    return due, stray


def left_to_close(context: Context, text: str) -> list[str]:
    """Return which closers are left to `text` at the cursor, innermost last.

    The text before the cursor leaves closers due; that after it brings some, with which it first
    closes what `text` opens. The innermost n that are due are left to `text` when the others
    answer to what is brought: n is chosen so that the fewest of those find no partner, because
    where the file is whole none would; and as large as that allows, because a bracket that is
    missing does more harm than one that is spare.
    """
    language, lead = context.language_id, context.line_before
    due = balance(context.prefix, language)[0][-_DEEPEST:]
    brought = [bracket for _, bracket in balance(context.suffix, language, lead=lead)[1]]
    del brought[_DEEPEST:]
    for bracket in reversed(balance(text, language, lead=lead)[0]):
        if brought[:1] == [bracket]:
            del brought[0]
    best, fewest = 0, len(brought) + 1
    for left in range(len(due) + 1):
        outer = due[: len(due) - left][::-1]
        if all(ours == theirs for ours, theirs in zip(outer, brought, strict=False)):
            unmatched = max(0, len(brought) - len(outer))
            if unmatched <= fewest:
                best, fewest = left, unmatched
    return due[len(due) - best :]


def in_block_comment(context: Context) -> bool:
    """Return whether the cursor is in a comment of several lines, where brackets are prose."""
    opened = context.prefix.rfind("/*") > context.prefix.rfind("*/")
    return opened and context.language_id in _SLASH_COMMENTS
