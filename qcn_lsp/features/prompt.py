"""What the model reads for one completion: the text around the cursor, and why it is not asked.

Pure functions of a document's text.
"""

import re
from dataclasses import dataclass

# In characters. The start of the prefix moves only in steps: between two steps the prompt of a
# keystroke begins with the prompt of the one before, which an engine's prefix cache then serves.
# What follows the cursor is read again for every keystroke, so it is short.
PREFIX_STEP = 4_096
PREFIX_LIMIT = 2 * PREFIX_STEP
SUFFIX_LIMIT = 1_024
# A longer line is data or minified code; nobody completes it by hand.
LINE_LIMIT = 2_000
_INSIDE_WORD = re.compile(r"\w\w")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The document around the cursor, as it stands in the editor.

    `start` and `cursor` are offsets into the document; `prefix` is its text from `start` to
    `cursor`, `suffix` what follows the cursor.
    """

    start: int
    cursor: int
    prefix: str
    suffix: str

    @property
    def line_before(self) -> str:
        """The cursor's line up to the cursor."""
        return re.split(r"[\r\n]", self.prefix)[-1]

    @property
    def line_after(self) -> str:
        """The cursor's line from the cursor on, without its line break."""
        return re.split(r"[\r\n]", self.suffix, maxsplit=1)[0]

    @property
    def mid_line(self) -> bool:
        """Whether text follows the cursor on its line."""
        return bool(self.line_after.strip())


def around(text: str, cursor: int) -> Surroundings:
    """Return what stands around offset `cursor`, cut at line starts where there are any."""
    start = 0
    if cursor > PREFIX_LIMIT:
        step = -(-(cursor - PREFIX_LIMIT) // PREFIX_STEP) * PREFIX_STEP
        start = text.find("\n", step, cursor) + 1 or step
    end = min(len(text), cursor + SUFFIX_LIMIT)
    if end < len(text):
        end = text.rfind("\n", cursor, end) + 1 or end
    return Surroundings(start, cursor, text[start:cursor], text[cursor:end])


def inside_word(text: str, cursor: int) -> bool:
    """Return whether a word begins before offset `cursor` and goes on behind it."""
    return cursor > 0 and _INSIDE_WORD.match(text, cursor - 1) is not None


def unfit(text: str, cursor: int) -> str | None:
    """Return why nothing can be completed at `cursor`, or None."""
    if "\0" in text:
        return "the file is binary"
    before, after = max(0, cursor - LINE_LIMIT), cursor + LINE_LIMIT
    line_start = text.rfind("\n", before, cursor) + 1 or before
    line_end = text.find("\n", cursor, after)
    if (line_end if line_end >= 0 else min(after, len(text))) - line_start >= LINE_LIMIT:
        return f"the line is longer than {LINE_LIMIT} characters"
    return None
