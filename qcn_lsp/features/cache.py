"""Answers that are still good: for the same place, or further on in a text that was suggested.

An answer is kept with all that made it: settings, other files shown, text before and after the
cursor. Leaving out one of them is how other tools came to offer text for another file's state.
"""

from collections import deque
from dataclasses import dataclass

from qcn_lsp.features.auto_closing import closers_of, inside
from qcn_lsp.features.prompt import SUFFIX_LIMIT, Surroundings
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

        What has been typed since an answer must be how it begins; the rest is the suggestion, or
        what of it stands inside of brackets and quotes that the editor has closed by itself.
        """
        for answer in self._answers:
            then = answer.around
            if then.cursor > around.cursor or answer.key != key:
                continue
            typed = text[then.cursor : around.cursor]
            if text[then.start : then.cursor] != then.prefix or not answer.text.startswith(typed):
                continue
            rest = answer.text[len(typed) :]
            if then.suffix != around.suffix:
                closers = closers_of(typed)
                rest = inside(rest, closers) if _is_behind(closers, then, around) else ""
            elif not typed:
                return rest
            if rest.strip():
                return rest
        return None


def _is_behind(closers: str, then: Surroundings, now: Surroundings) -> bool:
    """Whether nothing but `closers` has come to stand behind the cursor."""
    rest = now.suffix.removeprefix(closers)
    # What is shown behind the cursor is so long at most: it may lack its last line now.
    cut = len(then.suffix) + len(closers) > SUFFIX_LIMIT and then.suffix.startswith(rest)
    return now.suffix.startswith(closers) and (rest == then.suffix or cut)
