"""Closing brackets only where something is left to close (continue #4721)."""

from qcn_lsp.postprocess.context import Context
from qcn_lsp.postprocess.lexical import balance, in_block_comment, left_to_close


def without_stray_closers(text: str, context: Context) -> str:
    """Cut before the first bracket that closes nothing, or what the text after closes already."""
    if in_block_comment(context):
        return text
    left = left_to_close(context, text)
    for index, bracket in balance(text, context.language_id, lead=context.line_before)[1]:
        if not left or left.pop() != bracket:
            return text[:index]
    return text
