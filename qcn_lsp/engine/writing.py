"""What a user is told of an answer while it comes: how far the model reads, then what it writes."""

from collections.abc import Callable

from qcn_lsp.postprocess.hidden import hidden_characters

WIDTH = 60  # characters of the line that is being written
TELL_EVERY = 8  # pieces of an answer, of about a token each; and with each line
_FENCES = ("```", "~~~")


class Writing:
    """Listens to one answer, and hands `tell` a line of plain text now and then.

    `so_far` gets all of the answer at the same times.
    """

    def __init__(
        self, tell: Callable[[str], None], so_far: Callable[[str], None] | None = None
    ) -> None:
        self._tell, self._so_far = tell, so_far
        self._text = ""
        self._lines = 0  # that say something and are complete
        self._last = ""  # of those
        self._line = ""  # the one that is being written
        self._since = 0  # pieces that were not told of

    def reading(self, done: int, total: int) -> None:
        """Hear that `done` of `total` tokens of the prompt are read."""
        self._tell(f"The model reads: {100 * done // max(total, 1)} %")

    def wrote(self, text: str) -> None:
        """Hear the next piece of the answer."""
        self._text += text
        *ended, rest = (self._line + text).split("\n")
        for line in ended:
            self._take(line)
        self._line = rest
        self._since += 1
        if ended or self._since >= TELL_EVERY:
            self._since = 0
            self._tell(self._told())
            if self._so_far is not None:
                self._so_far(self._text)

    def _take(self, line: str) -> None:
        if _says_something(line):
            self._lines += 1
            self._last = line

    def _told(self) -> str:
        count, line = self._lines, self._last
        if _says_something(self._line):
            count, line = count + 1, self._line
        if not count:
            return "The model writes"
        return f"{count} {'line' if count == 1 else 'lines'}: {_plain(line)}"


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith(_FENCES)


def _plain(line: str) -> str:
    """Return a line as a message shows it: of one width at most, and without hidden characters."""
    line = " ".join(line[: 4 * WIDTH].split())
    for hidden in hidden_characters(line):
        line = line.replace(hidden, "")
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
