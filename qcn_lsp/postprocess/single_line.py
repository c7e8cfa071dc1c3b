"""One line in the middle of a line: more would tear apart what follows the cursor."""

from qcn_lsp.postprocess.context import Context


def one_line_when_mid_line(text: str, context: Context) -> str:
    """Keep the first line when text follows the cursor on its line."""
    return text.partition("\n")[0] if context.mid_line else text
