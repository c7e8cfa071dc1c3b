"""What the user has just deleted, so that it is not suggested right back."""

from dataclasses import dataclass

from qcn_lsp.features.prompt import Surroundings


@dataclass(frozen=True, slots=True)
class _Last:
    here: Surroundings
    deleted: str


class Deletions:
    """Compares each place where a suggestion is wanted with the one before, per document."""

    def __init__(self) -> None:
        self._last: dict[str, _Last] = {}

    def before(self, uri: str, here: Surroundings) -> str:
        """Return the text that stood at this place and is gone; empty when nothing was deleted.

        Several deletions in a row, such as a held backspace, count as one.
        """
        last = self._last.pop(uri, None)
        deleted = _deleted(last, here) if last else ""
        self._last[uri] = _Last(here, deleted)
        if len(self._last) > _DOCUMENTS:
            del self._last[next(iter(self._last))]
        return deleted


# Deletions are remembered for the documents last used.
_DOCUMENTS = 8


def _deleted(last: _Last, here: Surroundings) -> str:
    then = last.here
    if then.prefix == here.prefix and then.suffix == here.suffix:
        return last.deleted
    if then.start == here.start and then.suffix == here.suffix:
        if then.prefix.startswith(here.prefix):  # backspace, or a selection that ended here
            return then.prefix[len(here.prefix) :] + last.deleted
        return ""
    if then.prefix == here.prefix and here.suffix:
        # Deleted forwards; both windows end somewhere, so compare what both show.
        gone = then.suffix.find(here.suffix[:_SHARED])
        if gone > 0:
            return last.deleted + then.suffix[:gone]
    return ""


# Characters after a forward deletion that must be found again to call it one.
_SHARED = 40
