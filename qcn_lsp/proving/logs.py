"""What untrusted programs write, as text that does nothing to whoever shows it."""

import re
import unicodedata

# Commands to a terminal: CSI and OSC sequences, and the two-character ones.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b."
)
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})  # control, format (bidi, zero width), …


def plain(output: bytes) -> str:
    """Return output as text without escape sequences, control or invisible characters."""
    text = _ESCAPES.sub("", output.decode("utf-8", "replace")).replace("\r\n", "\n")
    return "".join(
        character
        for character in text.replace("\r", "\n")
        if character in "\n\t" or unicodedata.category(character) not in _UNSEEN
    )


def fenced(log: str) -> str:
    """Return `log` as a block of code in Markdown, which nothing in it can end."""
    longest = max(map(len, re.findall(r"`+", log)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{log}\n{fence}"
