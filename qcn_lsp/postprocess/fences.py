"""Code without the Markdown around it (continue #2953)."""

import re

from qcn_lsp.postprocess.context import Context

_OPENING = re.compile(r"\A\s*(`{3,}|~{3,})[ \t]*[\w+#.-]*[ \t]*\n")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})[\w+#.-]*\s*")
# In these, a fence is text like any other.
_FENCED_LANGUAGES = frozenset({"markdown", "mdx", "rmd", "quarto", "restructuredtext", "asciidoc"})


def without_fences(text: str, context: Context) -> str:
    """Keep what stands inside a fence that opens the text; else cut at a line that is a fence."""
    if context.language_id in _FENCED_LANGUAGES or _in_a_fence(context):
        return text
    if opening := _OPENING.match(text):
        text = text[opening.end() :]
    lines = text.split("\n")
    for index, line in enumerate(lines):
        if _FENCE.fullmatch(line):
            return "\n".join(lines[:index])
    return text


def _in_a_fence(context: Context) -> bool:
    """Return whether the cursor is inside a fence of the file's own, in a docstring say."""
    return sum(bool(_FENCE.fullmatch(line)) for line in context.lines_before) % 2 == 1
