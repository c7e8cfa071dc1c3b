"""Answers that are still good: for the same place, or further on in a text that was suggested.

An answer is kept with all that made it: settings, other files shown, text before and after the
cursor. Leaving out one of them is how other tools came to offer text for another file's state.
"""

from collections import deque
from dataclasses import dataclass

from qcn_lsp.features.prompt import Surroundings
from qcn_lsp.settings import Settings

# Enough to type through an answer, delete, and move between a few places; about 10 kB each.
_SIZE = 64


@dataclass(frozen=True, slots=True)
class Key:
    """What an answer depends on besides the text around the cursor."""

    uri: str
    settings: Settings
    others: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    key: Key
    around: Surroundings
    text: str


class AnswerCache:
    """The last answers, newest first."""

    def __init__(self) -> None:
        self._answers: deque[_Answer] = deque(maxlen=_SIZE)

    def add(self, key: Key, around: Surroundings, text: str) -> None:
        """Keep `text`, which may be empty, as the answer at this place."""
        self._answers.appendleft(_Answer(key, around, text))

    def find(self, key: Key, text: str, around: Surroundings) -> str | None:
        """Return what is left to suggest at a place of a document's `text`, or None.

        What has been typed since an answer must be how it begins; the rest is the suggestion.
        """
        for answer in self._answers:
            then = answer.around
            if then.cursor > around.cursor or then.suffix != around.suffix or answer.key != key:
                continue
            typed = text[then.cursor : around.cursor]
            same = text[then.start : then.cursor] == then.prefix and answer.text.startswith(typed)
            rest = answer.text[len(typed) :]
            if same and (not typed or rest.strip()):
                return rest
        return None
