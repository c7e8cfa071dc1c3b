"""The fill-in-the-middle prompt as one text, for endpoints that do not take token ids.

Purpose. Our own engine encodes source text as plain text, so a `<|file_sep|>` in a string literal
stays eleven ordinary characters to the model. An OpenAI-compatible endpoint gets one text and
turns each special token's string in it into the control token, whoever wrote it. Text of the
repository must never do that: what holds such a string is left out.

What is left out: another file that holds one, whole; of the current file, the lines that hold
one, and on the cursor's own line all up to the last one before the cursor and all from the first
one after it. Lines are dropped whole because removing only the string could join its neighbours
into a new one; what remains of the cursor's line is separated from other text by a line break or
by the prompt's own control tokens, which begin and end with characters no half string can use.

Rejected: escaping with a zero-width character. The model would see, and repeat, a character that
is not in the file.
"""

import re
from dataclasses import dataclass

from qcn_lsp.engine.messages import CompletionRequest

FIM_PREFIX = "<|fim_prefix|>"
FIM_MIDDLE = "<|fim_middle|>"
FIM_SUFFIX = "<|fim_suffix|>"
REPO_NAME = "<|repo_name|>"
FILE_SEP = "<|file_sep|>"

STOP_STRINGS = (
    FIM_PREFIX,
    FIM_SUFFIX,
    "<|fim_pad|>",
    REPO_NAME,
    FILE_SEP,
    "<|endoftext|>",
    "<|im_end|>",
)

# The endpoint's vocabulary is not known here. All of this family's special tokens, and nearly all
# of its relatives', are of the first form; the rest are the named tags.
SPECIAL = re.compile(r"<\|[^\s<>|]{1,64}\|>|</?(?:tool_call|tool_response|think)>")
_UNFIT_FOR_A_NAME = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]")


@dataclass(frozen=True)
class FimPrompt:
    """The prompt, and a sentence for each passage that had to be left out."""

    text: str
    left_out: tuple[str, ...]


def fim_prompt(request: CompletionRequest) -> FimPrompt:
    """Return the repository format of the Qwen coder models around the cursor."""
    left_out: list[str] = []
    parts = [f"{REPO_NAME}{_name(request.repo, 'repository')}\n"]
    for file in request.extra:
        if SPECIAL.search(file.path) or SPECIAL.search(file.text):
            left_out.append(f"the file {file.path!r} (it holds a special token's string)")
        else:
            end = "" if file.text.endswith("\n") else "\n"
            parts.append(f"{FILE_SEP}{_name(file.path, 'file')}\n{file.text}{end}")
    prefix, dropped_before = _without_special_before(request.prefix)
    suffix, dropped_after = _without_special_after(request.suffix)
    if dropped := dropped_before + dropped_after:
        left_out.append(f"{dropped} passages of {request.path!r} with a special token's string")
    parts.append(f"{FILE_SEP}{_name(request.path, 'file')}\n")
    parts.append(f"{FIM_PREFIX}{prefix}{FIM_SUFFIX}{suffix}{FIM_MIDDLE}")
    return FimPrompt("".join(parts), tuple(left_out))


def _without_special_before(prefix: str) -> tuple[str, int]:
    """Return the text before the cursor without special strings, and how many passages went."""
    *lines, last = prefix.split("\n")
    kept = [line for line in lines if not SPECIAL.search(line)]
    dropped = len(lines) - len(kept)
    matches = list(SPECIAL.finditer(last))
    if matches:
        last = last[matches[-1].end() :]
        dropped += 1
    return "\n".join([*kept, last]), dropped


def _without_special_after(suffix: str) -> tuple[str, int]:
    """Return the text after the cursor without special strings, and how many passages went."""
    first, *lines = suffix.split("\n")
    kept = [line for line in lines if not SPECIAL.search(line)]
    dropped = len(lines) - len(kept)
    if match := SPECIAL.search(first):
        first = first[: match.start()]
        dropped += 1
    return "\n".join([first, *kept]), dropped


def _name(name: str, otherwise: str) -> str:
    """Return a path or repository name that fits on one line and holds no special string."""
    plain = _UNFIT_FOR_A_NAME.sub("_", name)
    return otherwise if SPECIAL.search(plain) or not plain else plain
