"""Characters that are not what they look like: nothing that a person reviews may hold them.

A text that is drawn from right to left, or characters of no width, let code say something else than
its reader sees (CVE-2021-42574); the tag characters carry whole messages unseen.
"""

import unicodedata

from qcn_lsp.postprocess.context import Context

_PLAIN = frozenset("\t\n\r")
_HIDDEN = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
# Letters to Unicode, invisible to readers.
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u17b4\u17b5")


def hidden_characters(text: str) -> frozenset[str]:
    """Return the characters of `text` that no reader sees, or that turn the text around."""
    return frozenset(
        one
        for one in set(text) - _PLAIN
        if unicodedata.category(one) in _HIDDEN or one in _FILLERS or one >= "\U000e0100"
    )


def without_hidden_characters(text: str, context: Context) -> str:
    """Return the text, or nothing where it brings a hidden character that the file does not have.

    Those of the file stay possible: joiners belong to some scripts, and to some emoji.
    """
    hidden = hidden_characters(text)
    return "" if hidden and not hidden <= set(context.prefix + context.suffix) else text


def names_of(characters: frozenset[str]) -> str:
    """Return their code points for a message: `U+202E, U+200B`."""
    return ", ".join(f"U+{ord(one):04X}" for one in sorted(characters))
