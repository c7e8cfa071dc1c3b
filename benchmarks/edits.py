"""Changes of a repository, and the completions behind them, laid out as the language server does.

A context is a run of this repository's source files in the order of their paths, around one folder
of short files, as many as fit: so the same files are changed in contexts of all lengths, and lie in
the middle of each. Every change goes through the real overlay (`qcn_indexer/overlay.py`).

Each case comes in several editions, numbered from 0, no two of which read the same: what an edition
needs, none before it has computed. Inserted text is real source from files outside the contexts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from qcn_indexer.layout import Count, Layout, Segment
from qcn_indexer.overlay import Deleted, Event, Limits, Overlay, Written

FOLDER = PurePosixPath("qcn_lsp/postprocess")
SHORTEST = 4_096  # tokens of the shortest context: what fits in it is what is changed
INSERTED, NEW_FILE = 512, 1_500  # tokens, about
PREFIX, SUFFIX = 192, 64  # tokens around the cursor of a completion, about
TYPED = "    return value if value is not None else default_of(name)\n"
# Of a context of 64k tokens, at every length: so that entries are the same.
LIMITS = Limits(budget=16_384)

Texts = Mapping[PurePosixPath, str]


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a completion is asked for: text before and after the cursor of a file."""

    path: PurePosixPath
    prefix: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Case:
    """What had been read, what is to be read now, and the completion behind it."""

    before: Overlay
    after: Overlay
    tail: Tail
    asked: Tail | None = None  # the completion before this one, where it began alike

    @property
    def in_file_order(self) -> Layout:
        """The files as they are after it, in the order of their paths."""
        return Layout(
            tuple(
                Segment(path, shown.text, "base", shown.kind)
                for path, shown in sorted(self.after.shows.items())
            )
        )


class Edits:
    """The cases over one context of at most `length` tokens."""

    def __init__(self, files: Texts, length: int, count: Count) -> None:
        self._count = count
        self.texts = _around(files, length, count)
        shown = [Segment(path, text, "base", "file") for path, text in self.texts.items()]
        self.base = Overlay.over(shown, limits=LIMITS, count=count)
        in_all = _around(files, SHORTEST, count)
        inside = [path for path in in_all if path.parent == FOLDER]
        self._files = sorted(inside, key=lambda path: (-len(files[path]), path))
        longest = sorted(files.keys() - self.texts.keys(), key=lambda path: -len(files[path]))
        self._spare = [line for path in longest for line in files[path].splitlines(keepends=True)]
        self._next = 0  # of the spare lines, the first that is not used yet
        self._long = files[longest[0]]

    @property
    def cases(self) -> dict[str, Callable[[int], Case]]:
        """The cases by name; each makes its edition of a number."""
        return {
            "one line": lambda number: self._edited(self._line(0, number)),
            "512 tokens inserted": lambda number: self._edited(self._insertion(0)),
            "a new file": lambda number: self._edited(self._new(number)),
            "a file deleted": lambda number: self._edited(Deleted(self._some_file(number))),
            "a branch switched": lambda number: self._edited(*self._branch(number)),
            "back on the branch": self._back,
            "typing in a long file": self._typing,
            "nothing": lambda number: self._edited(),
        }

    def _edited(self, *events: Event) -> Case:
        return Case(self.base, _after(self.base, events), self._tail())

    def _back(self, number: int) -> Case:
        """Return what returning to the branch that was left asks for."""
        away = _after(self.base, self._branch(number))
        changed = dict.fromkeys(event.path for event in self._branch(number))
        events = [
            Written(path, self.texts[path]) if path in self.texts else Deleted(path)
            for path in changed
        ]
        return Case(away, _after(away, events), self._tail())

    def _some_file(self, number: int) -> PurePosixPath:
        """Another one for each number, as long as there are any; none of the two longest."""
        return self._files[2 + number % (len(self._files) - 2)]

    def _line(self, which: int, number: int) -> Written:
        """A line in the middle of a file gets a comment."""
        path = self._files[which]
        lines = self.texts[path].splitlines(keepends=True)
        middle = next(at for at in range(len(lines) // 2, len(lines)) if lines[at].strip())
        lines[middle] = f"{lines[middle].rstrip()}  # changed: {number}\n"
        return Written(path, "".join(lines))

    def _insertion(self, which: int) -> Written:
        path = self._files[which]
        lines = self.texts[path].splitlines(keepends=True)
        middle = len(lines) // 2
        return Written(path, "".join((*lines[:middle], self._text(INSERTED), *lines[middle:])))

    def _new(self, number: int) -> Written:
        return Written(FOLDER / f"new_{number}.py", self._text(NEW_FILE))

    def _branch(self, number: int) -> Sequence[Written | Deleted]:
        """Another branch: a line in each of three files, one new file, one gone."""
        path = FOLDER / f"branch_{number}.py"
        lines = [self._line(which, 100 + number) for which in range(3)]
        return *lines, Written(path, self.texts[self._files[4]]), Deleted(self._files[3])

    def _typing(self, number: int) -> Case:
        """One character more in the middle of a file of some thousand tokens."""
        middle = self._long.index("\n", len(self._long) // 2) + 1
        path, prefix, suffix = FOLDER / "long.py", self._long[:middle], self._long[middle:]
        asked, tail = (
            Tail(path, prefix + TYPED[:typed], suffix) for typed in (number + 1, number + 2)
        )
        return Case(self.base, self.base, tail, asked)

    def _tail(self) -> Tail:
        """A completion in a file of its own, as yet unread."""
        prefix, suffix = (self._cut(self._text(size), size) for size in (PREFIX, SUFFIX))
        return Tail(FOLDER / "current.py", prefix.rstrip("\n"), "\n" + suffix)

    def _cut(self, text: str, size: int) -> str:
        """As much of a text as is so many tokens: all cases complete behind as much."""
        while self._count(text) > size:
            text = text[:-1]
        return text

    def _text(self, size: int) -> str:
        """The next spare lines of about as many tokens."""
        lines: list[str] = []
        while size > 0:
            lines.append(self._spare[self._next % len(self._spare)])
            size -= self._count(lines[-1])
            self._next += 1
        return "".join(lines)


def _after(overlay: Overlay, events: Sequence[Event]) -> Overlay:
    for event in events:
        overlay = overlay.after(event)
    return overlay


def _around(files: Texts, length: int, count: Count) -> Texts:
    """Files on both sides of the folder, in turns, until the next one does not fit; its own first.

    Their number of tokens is within `length`, less room for the repository's name.
    """
    paths = sorted(files)
    inside = [at for at, path in enumerate(paths) if path.parent == FOLDER]
    taken: dict[PurePosixPath, str] = {}
    left = length - 16
    for at in (*inside, *_outwards(inside[0], inside[-1], len(paths))):
        path = paths[at]
        size = Segment(path, files[path], "base", "file").tokens(count)
        if size <= left:
            taken[path] = files[path]
            left -= size
    return {path: taken[path] for path in sorted(taken)}


def _outwards(first: int, last: int, count: int) -> Iterator[int]:
    for distance in range(1, count):
        for at in (first - distance, last + distance):
            if 0 <= at < count:
                yield at
