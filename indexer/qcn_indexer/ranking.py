"""Which files of a root are worth reading, best first, and which are likely to change.

A file's score is a sum of signals, each between 0 and 1 times its points in `POINTS`. Its heat says
how likely it is to change soon, which decides where it stands, not whether. Both are functions of
the facts alone: the same facts give the same order, whatever the order they come in.

Two kinds of facts need care. A checkout or a clone writes all its files at once: the times of files
of which more than `BULK` were written within a minute are nobody's edits. And git history is taken
as given (`history.py` reads it); a root without git is ranked by the rest.
"""

import heapq
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from qcn_indexer.imports import Graph, Reader, import_graph

POINTS: Mapping[str, float] = {
    "open": 100,  # the user says so; nothing else outweighs it
    "one import away": 45,  # what an open file calls, and who calls it: most cross-file names
    "tests it, or is tested by it": 30,  # says what an open file should do
    "edited lately": 30,  # the work at hand, as far as open files do not show it
    "committed lately": 20,  # the work of these weeks
    "two imports away": 15,  # types of arguments and results
    "imported by many": 15,  # what every file of the project may use
    "about the project": 12,  # README and build files: names, dependencies, conventions
    "committed often": 10,  # where changes usually land
    "beside an open file": 10,  # the same folder holds the same kind of code
}
EDIT_HALF_LIFE = 24 * 3600.0  # yesterday's edit counts half
COMMIT_HALF_LIFE = 30 * 24 * 3600.0
BULK = 32  # files written within one minute: more than a person saves
HOT_AT_LEAST = 0.5  # heat: open, or edited within a day
HOT_AT_MOST = 16  # files: each costs a checkpoint, 75 MB of state for an 80-billion-parameter model

_ABOUT = re.compile(
    r"readme(\..*)?|architecture\.md|contributing\.md|pyproject\.toml|setup\.(py|cfg)|package\.json|"
    r"tsconfig\.json|cargo\.toml|go\.mod|pom\.xml|build\.gradle(\.kts)?|cmakelists\.txt|makefile|"
    r"meson\.build|gemfile|.*\.gemspec|justfile|dockerfile",
    re.IGNORECASE,
)
_TEST = re.compile(r"^tests?[_-]|[_.-](tests?|spec)$|(?<=[a-z])Tests?$")


@dataclass(frozen=True, slots=True)
class File:
    """A file of the root and what is known of it."""

    path: PurePosixPath
    text: str
    edited_at: float  # seconds since the epoch: of its last write, or of its buffer's last change
    open: bool = False


@dataclass(frozen=True, slots=True)
class Commits:
    """What git says of a file: how many of the commits looked at touched it, and when the last."""

    count: int
    last: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """A file with its place: why it is worth reading, and whether it is likely to change."""

    path: PurePosixPath
    text: str
    score: float
    heat: float
    hot: bool
    reasons: tuple[str, ...]  # the signals that gave the score, the strongest first


def likeliest(
    edited: Mapping[str, float],
    *,
    opened: Collection[str],
    history: Mapping[PurePosixPath, Commits],
    now: float,
    at_most: int,
) -> list[str]:
    """Return the paths that are worth ranking, where there are more than can be, best first.

    By the signals that need no text. `edited` gives each path's time of its last write, in seconds
    since the epoch. In a fresh clone, whose times and commits say nothing, what lies near the open
    files comes first, then what lies the least deep.
    """
    if len(edited) <= at_most:
        return sorted(edited)
    minutes = Counter(int(time // 60) for time in edited.values())
    commits = {str(path): found for path, found in history.items()}
    most = max((found.count for found in commits.values()), default=1)
    near: dict[str, float] = {}
    for folder in {path.rpartition("/")[0] for path in opened}:
        for levels in range(folder.count("/") + 1):
            above = folder.rsplit("/", levels)[0]
            near[above] = max(near.get(above, 0.0), 0.5**levels)

    def worth(path: str) -> float:
        folder, _, name = path.rpartition("/")
        found = commits.get(path, Commits(0, 0.0))
        by_hand = minutes[int(edited[path] // 60)] <= BULK
        signals = {
            "open": float(path in opened),
            "edited lately": _fresh(edited[path], now, EDIT_HALF_LIFE) if by_hand else 0.0,
            "committed lately": _fresh(found.last, now, COMMIT_HALF_LIFE),
            "committed often": _share(found.count, most),
            "about the project": float(bool(_ABOUT.fullmatch(name))) / (path.count("/") + 1),
            "beside an open file": near.get(folder, 0.0),
        }
        return sum(POINTS[name] * value for name, value in signals.items())

    return heapq.nsmallest(at_most, edited, key=lambda path: (-worth(path), path.count("/"), path))


def rank(
    files: Sequence[File],
    *,
    history: Mapping[PurePosixPath, Commits],
    now: float,
    imports: Reader | None = None,
) -> list[Ranked]:
    """Return the files, best first. `imports` says what each imports, where that is known."""
    signals = _Signals(files, history, now, imports)
    heats = {file.path: signals.heat(file) for file in files}
    hottest = sorted(heats, key=lambda path: (-heats[path], path))[:HOT_AT_MOST]
    hot = {path for path in hottest if heats[path] >= HOT_AT_LEAST}
    ranked = []
    for file in files:
        parts = {name: POINTS[name] * value for name, value in signals.of(file).items() if value}
        reasons = tuple(sorted(parts, key=lambda name: (-parts[name], name)))
        ranked.append(
            Ranked(
                path=file.path,
                text=file.text,
                score=sum(parts[name] for name in reasons),
                heat=heats[file.path],
                hot=file.path in hot,
                reasons=reasons,
            )
        )
    return sorted(ranked, key=lambda one: (-one.score, one.path))


class _Signals:
    """What is worked out once for all files."""

    def __init__(
        self,
        files: Sequence[File],
        history: Mapping[PurePosixPath, Commits],
        now: float,
        imports: Reader | None,
    ) -> None:
        self._history, self._now = history, now
        self._minutes = Counter(int(file.edited_at // 60) for file in files)
        self._most = max((commits.count for commits in history.values()), default=1)
        self._open = {file.path for file in files if file.open}
        self._open_folders = {path.parent for path in self._open}
        self._open_subjects = {(_subject(path), _is_test(path)) for path in self._open}
        graph = import_graph({file.path: file.text for file in files}, imports)
        importers = _turned(graph)
        self._importers = {path: len(from_) for path, from_ in importers.items()}
        self._many = max(self._importers.values(), default=1)
        self._one_away = _neighbours(self._open, graph, importers)
        self._two_away = _neighbours(self._one_away, graph, importers)

    def of(self, file: File) -> dict[str, float]:
        """Each signal, between 0 and 1."""
        path = file.path
        commits = self._history.get(path, Commits(0, 0.0))
        counterpart = (_subject(path), not _is_test(path)) in self._open_subjects
        one_away = path in self._one_away
        return {
            "open": float(file.open),
            "one import away": float(one_away),
            "two imports away": float(path in self._two_away and not one_away),
            "tests it, or is tested by it": float(counterpart),
            "edited lately": self._edited(file),
            "committed lately": _fresh(commits.last, self._now, COMMIT_HALF_LIFE),
            "committed often": _share(commits.count, self._most),
            "imported by many": _share(self._importers.get(path, 0), self._many),
            "about the project": _about(path),
            "beside an open file": float(path.parent in self._open_folders),
        }

    def heat(self, file: File) -> float:
        """How likely the file is to change soon: what is open, then what changed lately, often."""
        commits = self._history.get(file.path, Commits(0, 0.0))
        often = _share(commits.count, self._most)
        usual = often * _fresh(commits.last, self._now, COMMIT_HALF_LIFE)
        return 2 * file.open + self._edited(file) + usual

    def _edited(self, file: File) -> float:
        if self._minutes[int(file.edited_at // 60)] > BULK:
            return 0.0
        return _fresh(file.edited_at, self._now, EDIT_HALF_LIFE)


def _fresh(then: float, now: float, half_life: float) -> float:
    """1 for now (or a clock that runs ahead), half of it a half-life ago; never quite 0."""
    return 0.5 ** (max(0.0, now - then) / half_life) if then else 0.0


def _share(part: int, most: int) -> float:
    """A count as a share of the highest one, on a logarithmic scale."""
    return math.log1p(part) / math.log1p(most) if most else 0.0


def _about(path: PurePosixPath) -> float:
    """1 for such a file at the root, less the deeper it lies: the README of a part is about it."""
    return 1 / len(path.parts) if _ABOUT.fullmatch(path.name) else 0.0


def _is_test(path: PurePosixPath) -> bool:
    return bool(_TEST.search(path.stem))


def _subject(path: PurePosixPath) -> str:
    """What a source or its test is about: `ranking` for ranking.py and test_ranking.py."""
    return _TEST.sub("", path.stem).casefold()


def _turned(graph: Graph) -> Graph:
    importers: dict[PurePosixPath, set[PurePosixPath]] = {}
    for path, imported in graph.items():
        for other in imported:
            importers.setdefault(other, set()).add(path)
    return {path: frozenset(from_) for path, from_ in importers.items()}


def _neighbours(of: Iterable[PurePosixPath], graph: Graph, importers: Graph) -> set[PurePosixPath]:
    return {other for path in of for edges in (graph, importers) for other in edges.get(path, ())}
