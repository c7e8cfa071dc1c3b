"""White space as the file has it (continue #2987, #3567)."""

import re
from collections import Counter
from collections.abc import Iterable

from qcn_lsp.postprocess.context import Context, columns, indentation

_COMMENT_SIGNS = ("#", "//", "/*", "--")
_BEGIN_WITHOUT_SPACE = ")]},;:."
_OPENS_BLOCK = re.compile(r"[:({\[]\s*$|\b(?:then|do|else|begin)\s*$")


def without_blank_start(text: str, context: Context) -> str:
    """Start right under a line that opens a block, and nowhere after more than two blank lines."""
    if not text.startswith(("\n", " ", "\t")):
        return text
    body = re.sub(r"\A(?:[ \t]*\n)*", "", text)
    breaks = text.count("\n", 0, len(text) - len(body))
    if not breaks:
        return text
    if not _OPENS_BLOCK.search(_line_above(context)):
        return "\n" * min(breaks, 3) + body
    if context.line_before.strip():
        return "\n" + body
    return body.removeprefix(context.line_before)  # the cursor's own line is still empty


def without_second_space(text: str, context: Context) -> str:
    """Begin without white space where some stands before the cursor, behind something.

    In front of a comment it stays: some styles want two spaces there.
    """
    before = context.line_before
    if not before.strip() or not before[-1].isspace():
        return text
    body = text.lstrip(" \t")
    return text if body.startswith(_COMMENT_SIGNS) else body


def in_the_files_indentation(text: str, context: Context) -> str:
    """Indent with tabs or spaces as the file does, and not twice what is indented already."""
    unit = _unit(context)
    lines = text.split("\n")
    if not context.line_before.strip():
        lines[0] = _not_twice(lines[0], context, unit)
    return "\n".join([lines[0], *(_indented(line, unit) for line in lines[1:])])


def without_blank_end(text: str, context: Context) -> str:
    """Drop white space at the end, but for what parts it from the rest of the line.

    The file goes on below by itself; `return ‸x` with `not ` does not.
    """
    rest = context.line_after
    apart = rest and not rest[0].isspace() and rest[0] not in _BEGIN_WITHOUT_SPACE
    return text if apart else text.rstrip()


def _line_above(context: Context) -> str:
    """Return the last line before the cursor that says something, perhaps the cursor's own."""
    return next((line for line in reversed(context.lines_before) if line.strip()), "")


def _unit(context: Context) -> str | None:
    """Return one level of the file's indentation, or None where the file shows none."""
    return indent_unit((*context.lines_before[:-1], *context.lines_after[1:]))


def indent_unit(lines: Iterable[str]) -> str | None:
    """Return one level of indentation, a tab or some spaces; None where no line shows one."""
    indents = [indentation(line) for line in lines if line.strip()]
    indents = [indent for indent in indents if indent]
    if not indents:
        return None
    if sum(indent.startswith("\t") for indent in indents) * 2 > len(indents):
        return "\t"
    widths = [len(indent) for indent in indents if "\t" not in indent]
    steps = Counter(abs(a - b) for a, b in zip([0, *widths], widths, strict=False) if a != b)
    steps = Counter({step: times for step, times in steps.items() if step > 1})
    return " " * (steps.most_common(1)[0][0] if steps else 4)


def _indented(line: str, unit: str | None) -> str:
    """Return `line` with its indentation in the file's `unit`."""
    indent = indentation(line)
    if unit == "\t" and " " in indent:
        width = columns(line)
        return "\t" * (width // 4) + " " * (width % 4) + line[len(indent) :]
    if unit and unit != "\t" and "\t" in indent:
        return indent.replace("\t", unit) + line[len(indent) :]
    return line


def _not_twice(line: str, context: Context, unit: str | None) -> str:
    """Return the first line without indentation that the cursor's line has already."""
    typed = context.line_before
    if not typed or not indentation(line):
        return line
    above = _line_above(context)
    deepest = columns(above)
    if _OPENS_BLOCK.search(above):
        deepest += columns((unit or "    ") + "x")
    return line.lstrip(" \t") if columns(typed + line) > deepest else line
