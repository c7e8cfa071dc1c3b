"""The prompt of a fill-in-the-middle completion, as token ids, within the context.

The format is the one that the Qwen coder models were trained on (Qwen2.5-Coder, arXiv 2409.12186):
other files in front in the repository format, then the current file as prefix, suffix, middle; or
as suffix, prefix, middle (arXiv 2207.14255) where the checkpoint says that it completes so
(`fim_order` in its `generation_config.json`). Everything a caller sends is plain text; only this
module places control tokens.

What is left out when it does not all fit, in this order:

1. The suffix is cut at a line end after `MAX_SUFFIX_TOKENS`, and never takes more than a quarter of
   the room: with the prefix first it stands behind the cursor's line, so it is read anew at every
   keystroke, and what is next to the cursor counts most.
2. Whole files are dropped from the front of `extra`: the last one stands nearest to the current
   file.
3. The prefix is cut at its start, at the beginning of a line.

A cut that moved with every typed character would move the whole prompt, and with it throw away the
cached state. So the prefix is cut at an *anchor* only: the first line start after a multiple of a
fixed stride from the file's start; and the room for other files is reckoned with the current file's
length rounded up. Both then stay where they are for hundreds of keystrokes. The alternative, an
exact fit, uses a few hundredths more of the room and re-reads everything each time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding

from qcn_inference.config import FimOrder
from qcn_inference.request import Prompt, RequestError
from qcn_inference.tokenizer import (
    FILE_SEP,
    FIM_MIDDLE,
    FIM_PREFIX,
    FIM_SUFFIX,
    REPO_NAME,
    Tokenizer,
)

MAX_SUFFIX_TOKENS = 512  # as llama.cpp's server takes with its default batch
# Text of more characters per token of room than this is cut before it is tokenised (code has 3 to
# 4 a token), so that a keystroke in a huge file does not cost tokenising the file.
LONGEST_CHARACTERS_PER_TOKEN = 6
# Steps in which the current file's share of the room grows.
ROOM_STEPS = 16
# Anchors for cutting the prefix lie one stride apart: about this part of the prefix's room, the
# tokens taken as characters, down to a power of two. So a room that is a few tokens larger, because
# the suffix has become shorter, has the same anchors.
STRIDES = 16
# Stand-ins where a caller gives other files but no names.
UNNAMED_REPO, UNNAMED_FILE = "repository", "untitled"


@dataclass(frozen=True, slots=True)
class ContextFile:
    """Another file of the repository."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class InfillText:
    """Where to complete: between `prefix` and `suffix` of `path`. All of it is plain text."""

    prefix: str
    suffix: str
    path: str = ""
    repo: str = ""
    extra: tuple[ContextFile, ...] = ()


def infill_prompt(
    tokenizer: Tokenizer,
    text: InfillText,
    room: int,
    order: FimOrder = "prefix_first",
    context: Sequence[int] = (),
) -> Prompt:
    """Lay out a prompt of at most `room` tokens, behind those of a `context` if one is given.

    Raises:
        RequestError: not even the file's path fits.
    """
    opening, header = _headers(tokenizer, text)
    if context:
        opening = []  # the context has opened the repository
        header = header or _file_header(tokenizer, UNNAMED_FILE)
    free = room - len(opening) - len(header) - 3
    if free < 1:
        raise RequestError(
            f"the context has room for {room} prompt tokens, fewer than the file's name takes"
        )
    suffix, suffix_cut = _head(tokenizer, text.suffix, min(MAX_SUFFIX_TOKENS, free // 4))
    prefix, last_line, prefix_cut = _tail(tokenizer, text.prefix, free - len(suffix))
    left = free - _rounded_up(len(prefix) + len(suffix), free)
    files, dropped = _fitting_files(tokenizer, text.extra, left)
    front = [*context, *opening, *files]
    gap, prefix_start = _around_the_gap(tokenizer, prefix, suffix, order)
    line_start = len(front) + len(header) + prefix_start + last_line
    # Where the line begins a block may end that the next character lengthens: then only what ends
    # before is as good for the next prompt.
    keep = tuple(sorted(at for at in {len(front), line_start - 1, line_start} if at > 0))
    ids = [*front, *header, *gap]
    truncated = suffix_cut or prefix_cut or dropped
    return Prompt(ids, keep, truncated, context_tokens=len(context))


def bare_infill_prompt(tokenizer: Tokenizer, prefix: str, suffix: str, order: FimOrder) -> Prompt:
    """The prompt of one file without a name, of which nothing is left out, however long it is."""
    encoding = tokenizer.plain_encoding(prefix)
    gap, start = _around_the_gap(tokenizer, encoding.ids, tokenizer.encode_plain(suffix), order)
    return Prompt(gap, (start + _tokens_to_line_end(encoding, prefix, len(prefix)),))


def _around_the_gap(
    tokenizer: Tokenizer, prefix: Sequence[int], suffix: Sequence[int], order: FimOrder
) -> tuple[list[int], int]:
    """The current file with its control tokens, and where in that the prefix's own begin."""
    control = tokenizer.control_id
    before, after = [control(FIM_PREFIX), *prefix], [control(FIM_SUFFIX), *suffix]
    if order == "suffix_first":
        return [*after, *before, control(FIM_MIDDLE)], len(after) + 1
    return [*before, *after, control(FIM_MIDDLE)], 1


def _headers(tokenizer: Tokenizer, text: InfillText) -> tuple[list[int], list[int]]:
    """What opens the repository and the current file; nothing where a bare file is completed."""
    if not (text.extra or text.path or text.repo):
        return [], []
    encode, control = tokenizer.encode_plain, tokenizer.control_id
    opening = [control(REPO_NAME), *encode((text.repo or UNNAMED_REPO) + "\n")]
    return opening, _file_header(tokenizer, text.path or UNNAMED_FILE)


def _file_header(tokenizer: Tokenizer, path: str) -> list[int]:
    return [tokenizer.control_id(FILE_SEP), *tokenizer.encode_plain(path + "\n")]


def _rounded_up(tokens: int, free: int) -> int:
    step = max(1, free // ROOM_STEPS)
    return -(-tokens // step) * step


def _fitting_files(
    tokenizer: Tokenizer, extra: tuple[ContextFile, ...], room: int
) -> tuple[list[int], bool]:
    """The last files that fit whole, in their order, and whether any was dropped."""
    parts: list[list[int]] = []
    for file in reversed(extra):
        if len(file.text) > room * LONGEST_CHARACTERS_PER_TOKEN:
            break
        body = file.text if file.text.endswith("\n") else file.text + "\n"
        header = _file_header(tokenizer, file.path or UNNAMED_FILE)
        part = [*header, *tokenizer.encode_file(body)]
        if len(part) > room:
            break
        room -= len(part)
        parts.append(part)
    return [token for part in reversed(parts) for token in part], len(parts) < len(extra)


def _head(tokenizer: Tokenizer, text: str, limit: int) -> tuple[list[int], bool]:
    """The first lines of `text` within `limit` tokens (part of the first if it is longer)."""
    kept = text[: limit * LONGEST_CHARACTERS_PER_TOKEN]
    encoding = tokenizer.plain_encoding(kept)
    ids = encoding.ids
    if len(ids) <= limit and len(kept) == len(text):
        return list(ids), False
    end = encoding.offsets[limit][0] if len(ids) > limit else len(kept)
    return list(ids[: _tokens_to_line_end(encoding, kept, end) or min(limit, len(ids))]), True


def _tokens_to_line_end(encoding: Encoding, text: str, end: int) -> int:
    """The number of tokens up to the last line break before character `end`, 0 if there is none."""
    newline = text.rfind("\n", 0, end)
    token = encoding.char_to_token(newline) if newline >= 0 else None
    span = None if token is None else encoding.token_to_chars(token)
    if token is None or span is None:
        return 0
    _, token_end = span
    # A token that goes on past the line break would change with what is typed behind it.
    return token + 1 if token_end == newline + 1 else token


def _tail(tokenizer: Tokenizer, text: str, limit: int) -> tuple[list[int], int, bool]:
    """The end of `text` within `limit` tokens, cut at an anchor.

    Also the number of tokens before its last line, and whether it was cut.
    """
    longest = limit * LONGEST_CHARACTERS_PER_TOKEN
    start = _anchor(text, len(text) - longest, limit) if len(text) > longest else 0
    kept = text[start:]
    encoding = tokenizer.plain_encoding(kept)
    ids, first = encoding.ids, 0
    if len(ids) > limit:
        offsets, first = encoding.offsets, len(ids) - limit
        # Anchors count from the start of the file, not from the start of what was tokenised.
        anchor = _anchor(text, start + offsets[first][0], limit) - start
        while first < len(ids) and offsets[first][0] < anchor:
            first += 1
    last_line = _tokens_to_line_end(encoding, kept, len(kept))
    return list(ids[first:]), max(0, last_line - first), start > 0 or first > 0


def _anchor(text: str, at: int, limit: int) -> int:
    """The first anchor at or after character `at`: a mark's next line start, or else the mark."""
    stride = 2 ** max(0, (limit // STRIDES).bit_length() - 1)
    mark = -(-at // stride) * stride
    newline = text.find("\n", max(0, mark - 1), mark - 1 + stride)
    return newline + 1 if newline >= 0 else mark
