"""Small models loop, and echo what stands above; neither is offered."""

import re

from qcn_lsp.postprocess.context import Context, has_words

# A block said this often is a loop. Single lines recur in honest code (`pass`, table rows), blocks
# of several lines hardly.
_LINE_TIMES = 3
_BLOCK_TIMES = 2
_LONGEST_BLOCK = 8
# Lines of one word (`end`, `pass`, `#endif`) do stand below each other.
_ONE_WORD = re.compile(r"\W*\w*\W*")
# Within one line: a unit of four or more characters, five times over.
_STUTTER = re.compile(r"(.{4,60}?)\1{4,}")


def without_loops(text: str, context: Context) -> str:
    """Cut a loop down to its first turn: repeated lines, blocks, or words within a line."""
    if (stutter := _STUTTER.search(text)) and has_words(stutter.group(1)):
        text = text[: stutter.end(1)]
    lines = text.split("\n")
    for start in range(len(lines)):
        for size in range(1, min(_LONGEST_BLOCK, len(lines) - start) + 1):
            block = lines[start : start + size]
            times = _LINE_TIMES if size == 1 else _BLOCK_TIMES
            if has_words("".join(block)) and _turns(lines, start, size) >= times:
                return "\n".join(lines[: start + size])
    return text


def _turns(lines: list[str], start: int, size: int) -> int:
    """Return how often the block of `size` lines at `start` stands there in a row."""
    block, turns = lines[start : start + size], 1
    while lines[start + turns * size : start + (turns + 1) * size] == block:
        turns += 1
    return turns


def without_echo(text: str, context: Context) -> str:
    """Offer nothing when the first new lines are the lines just above the cursor."""
    lines = (context.line_before + text).split("\n")
    above = context.lines_before[:-1]
    if not text.partition("\n")[0].strip():  # the text starts on a line of its own
        above, lines = [*above, lines[0]], lines[1:]
    above = [line.rstrip() for line in above if line.strip()]
    new = [line.rstrip() for line in lines if line.strip()]
    if not new or not above:
        return text
    if new[0] == above[-1] and not _ONE_WORD.fullmatch(new[0]):
        return ""
    for size in range(2, min(len(new), len(above)) + 1):
        if new[:size] == above[-size:] and has_words("".join(new[:size])):
            return ""
    return text
