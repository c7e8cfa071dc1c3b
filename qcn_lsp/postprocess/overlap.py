"""What stands after the cursor is not offered again (continue #4721, #10751).

Three shapes of the same mistake, from the end of a line to whole blocks:
- the text ends with how the rest of the line begins: `foo(a|)` and `, b)`;
- its last lines are the next lines of the file, the very last perhaps cut short;
- it runs through the next lines of the file and on.
Closing brackets are a case of their own: `}` may be the text's own end or the file's. It is the
file's when the text has no opener for it.
"""

from itertools import takewhile

from qcn_lsp.postprocess.context import Context, has_words
from qcn_lsp.postprocess.lexical import balance, left_to_close

# Characters that two neighbouring pieces of code share by chance.
_CHANCE = 3
_QUOTES = "\"'`"


def without_what_follows(text: str, context: Context) -> str:
    """Cut `text` where it begins to repeat what follows the cursor."""
    if context.mid_line:
        return _without_rest_of_line(text, context)
    return _without_next_lines(text, context)


def _without_rest_of_line(line: str, context: Context) -> str:
    """Cut the longest end of `line` that begins the rest of the cursor's line."""
    rest = context.line_after.rstrip()
    for candidate in (rest, rest.lstrip()):
        for length in range(min(len(line), len(candidate)), 0, -1):
            if line.endswith(candidate[:length]) and _is_theirs(line, length, candidate, context):
                return line[:-length]
    return line


def _is_theirs(line: str, length: int, rest: str, context: Context) -> bool:
    """Return whether the last `length` characters of `line` belong to the rest of the line."""
    kept, shared = line[:-length], line[-length:]
    written = context.line_before + kept
    due, _ = balance(kept, context.language_id, lead=context.line_before)
    _, stray = balance(shared, context.language_id, lead=written)
    if stray and due and due[-1] == stray[0][1]:
        return False  # it closes what the text itself opened
    if stray and not has_words(shared) and not set(shared) & set(_QUOTES):
        left = left_to_close(context, line)
        if len(balance(line, context.language_id, lead=context.line_before)[1]) <= len(left):
            return False  # more than one is open: `f(g(a|)`
    if length == len(rest):
        return length >= _CHANCE or not has_words(shared) or not has_words(written[-1:])
    if shared[0] in _QUOTES:
        return written.count(shared[0]) % 2 == 1  # it closes a string, and so does the rest
    return bool(stray and stray[0][0] == 0) or (length >= _CHANCE and has_words(shared))


def _without_next_lines(text: str, context: Context) -> str:
    """Cut `text` at the first line from which on it is what the file says next."""
    following = [line.rstrip() for line in context.lines_after[1:] if line.strip()]
    if not following:
        return text
    lines = (context.line_before + text).split("\n")
    first = 0 if text.partition("\n")[0].strip() else 1
    for index in range(first, len(lines)):
        kept = "\n".join(lines[:index])[len(context.line_before) :]
        if lines[index].strip() and _says_what_follows(kept, lines[index:], following, context):
            return kept
    return text


def _says_what_follows(kept: str, lines: list[str], following: list[str], context: Context) -> bool:
    """Return whether `lines`, which come after `kept`, are the file's next or run through them."""
    ours = [line.rstrip() for line in lines if line.strip()]
    same = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, following, strict=False))
    )
    says = any(has_words(line) for line in ours[:same])
    cut_short = (
        same == len(ours) - 1
        and same < len(following)
        and following[same].startswith(ours[same])
        and len(ours[same].strip()) >= _CHANCE
    )
    if same == len(ours) or (cut_short and (says or has_words(ours[same]))):
        due, _ = balance(kept, context.language_id, lead=context.line_before)
        _, stray = balance("\n".join(ours), context.language_id)
        # A closer is the text's own where the text opened it.
        return not (stray and due and due[-1] == stray[0][1])
    return says and sum(len(line.strip()) for line in ours[:same]) >= 3 * _CHANCE
