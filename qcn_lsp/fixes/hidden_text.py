"""Hidden characters that a fix brings, and how a text with some is told to a person."""

from collections import Counter

from qcn_lsp.postprocess.hidden import hidden_characters, names_of

_ORDINARY = {ord(letter): " " for letter in "\t\n\r\f"}


def brought(before: str, after: str) -> str:
    """Return the code points of hidden characters of which `after` has more than `before`."""
    hidden = hidden_characters(after)
    if not hidden:
        return ""
    old = Counter(letter for letter in before if letter in hidden)
    new = Counter(letter for letter in after if letter in hidden)
    return names_of(frozenset(new - old))


def visible(text: str) -> str:
    """Return the text as one line, with hidden characters written out: `<U+202E>`."""
    line = text.translate(_ORDINARY)
    hidden = hidden_characters(line)
    return "".join(f"<U+{ord(one):04X}>" if one in hidden else one for one in line)
