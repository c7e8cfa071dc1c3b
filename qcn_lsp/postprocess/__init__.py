"""From what the model wrote to what is offered: a list of small filters, applied in order.

Each filter is a pure function of the text and what stands around the cursor, and either returns
the text, shortens it, or replaces its white space; none adds words. Text is handled with `\\n`
line ends; the file's own come back at the very end. Since a completion is only ever inserted at
the cursor, no filter can lose what the user wrote.

A filter answers a complaint that users of other tools made (see each module), and the order
matters: what is not code goes first, then what is there already, then what goes too far, then the
form of white space. An empty text means: offer nothing.
"""

from collections.abc import Callable

from qcn_lsp.postprocess.brackets import without_stray_closers
from qcn_lsp.postprocess.context import Context
from qcn_lsp.postprocess.fences import without_fences
from qcn_lsp.postprocess.hidden import without_hidden_characters
from qcn_lsp.postprocess.overlap import without_what_follows
from qcn_lsp.postprocess.repetition import without_echo, without_loops
from qcn_lsp.postprocess.scope import within_scope
from qcn_lsp.postprocess.single_line import one_line_when_mid_line
from qcn_lsp.postprocess.special_tokens import without_special_tokens
from qcn_lsp.postprocess.whitespace import (
    in_the_files_indentation,
    without_blank_end,
    without_blank_start,
    without_second_space,
)

__all__ = ["FILTERS", "Context", "clean"]

FILTERS: tuple[Callable[[str, Context], str], ...] = (
    without_special_tokens,
    without_hidden_characters,
    without_fences,
    one_line_when_mid_line,
    without_what_follows,
    without_loops,
    without_echo,
    without_stray_closers,
    within_scope,
    without_blank_start,
    without_second_space,
    in_the_files_indentation,
    without_blank_end,
)


def clean(text: str, context: Context) -> str:
    """Return what of the model's `text` to offer at the cursor; empty for nothing.

    The result has the file's line ends.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for keep in FILTERS:
        text = keep(text, context)
        if not text.strip():
            return ""
    return text.replace("\n", context.line_end)
