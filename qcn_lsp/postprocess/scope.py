"""One thought at a time: the text ends where the block it was asked for ends."""

from qcn_lsp.postprocess.context import Context, columns, has_words


def within_scope(text: str, context: Context) -> str:
    """Cut at the first line that leaves the cursor's block, or that begins the next one.

    A line that is indented less than the cursor's leaves it, unless it only closes brackets. A
    line as far out as the cursor's, after a blank line and an indented block, is the next block.
    """
    lines = (context.line_before + text).split("\n")
    base = columns(lines[0]) - lines[0].lstrip().startswith("*")  # ` * text`, in a comment
    opened = False
    for index in range(1, len(lines)):
        line = lines[index]
        if not line.strip():
            continue
        if columns(line) < base and not _only_closes(line):
            return _joined(lines[:index], context)
        if opened and columns(line) <= base and not lines[index - 1].strip():
            return _joined(lines[:index], context)
        opened = opened or columns(line) > base
    return text


def _only_closes(line: str) -> bool:
    return not has_words(line) or line.strip().rstrip(";") in ("end", "fi", "done", "esac")


def _joined(lines: list[str], context: Context) -> str:
    return "\n".join(lines)[len(context.line_before) :]
