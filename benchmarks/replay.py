"""Tokens computed per save, when the history of a repository is replayed: counted, not timed.

No model is needed. Every save of a history (`histories.py`) goes through the real overlay, and what
an engine would have to compute for it is counted in four ways, for the same files shown:

- ours: the entries from the first one on that changed, and one prefill block for where the grid of
  checkpoints lies (an upper bound: there is a checkpoint in front of every entry);
- path order: from the edit on, of files in the order of their paths, as most tools lay them out;
- hot files last: from the edit on, of files in the order of our first base, later ones behind it;
- from nothing: everything.

The other three get no such block, no superseded text, and files come into or leave their contexts
for nothing when our base is compacted, which is counted for us alone. A token is 3.5 bytes.
"""

import math
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from qcn_indexer.overlay import Deleted, Event, Limits, Overlay, Renamed, Written
from qcn_indexer.packing import pack
from qcn_indexer.ranking import BULK, Commits, File, Ranked, rank

from benchmarks import machine
from benchmarks.histories import (
    TRACES,
    Change,
    Commit,
    History,
    Texts,
    from_git,
    from_trace,
    saves,
)

BYTES_PER_TOKEN = 3.5  # of code, for the tokenizers of this model family: 3.3 to 3.6
BLOCK = 512  # tokens: one step of prefill
CONTEXTS, QUICK_CONTEXTS = (65_536, 262_144), (65_536,)
OVERLAY_SHARE = 1 / 4  # of a context
WARM_UP = 1 / 4  # of the commits: only looked at, so that there is a git history to rank by
AT_ONCE = 4  # files that are worked on in turns
OPEN = 8  # files: those saved last
COMMITS, QUICK_COMMITS = 400, 40
WAYS = ("ours", "path_order", "hot_files_last", "from_nothing")


def run(threads: int, *, quick: bool, repository: Path) -> dict[str, Any]:
    """Replay the recorded traces and the history of the repository at that path."""
    about = machine.describe(threads)
    traces = sorted(TRACES.glob("*.jsonl.gz"))
    histories = [from_trace(path) for path in (traces[:1] if quick else traces)]
    name = "this repository" if repository == machine.ROOT else repository.resolve().name
    histories.append(from_git(repository, name=name, commits=COMMITS))
    contexts = QUICK_CONTEXTS if quick else CONTEXTS
    replayed = []
    for history in histories:
        print(f"replaying {history.name}", file=sys.stderr)
        commits = history.commits[: QUICK_COMMITS if quick else COMMITS]
        cut = History(history.name, history.start, commits)
        replayed.append(_about(cut) | {"contexts": [replay(cut, size) for size in contexts]})
    sizes = {"bytes_per_token": BYTES_PER_TOKEN, "block": BLOCK, "overlay_share": OVERLAY_SHARE}
    return {"benchmark": "replay"} | about | sizes | {"histories": replayed}


def _about(history: History) -> dict[str, Any]:
    return {
        "name": history.name,
        "files": len(history.start),
        "text": {"unit": "bytes", "value": sum(map(_bytes, history.start.values()))},
        "commits": len(history.commits),
    }


def replay(history: History, context: int) -> dict[str, Any]:
    """Replay one history in a context of that many tokens."""
    looked_at = int(len(history.commits) * WARM_UP)
    project = _Project(history.start)
    for commit in history.commits[:looked_at]:
        project.commit(commit)
    ledger = _Ledger(project, context)
    for commit in history.commits[looked_at:]:
        for event in events(commit, dict(project.texts)):
            ledger.save(event)
        project.commit(commit)
    return ledger.figures()


def events(commit: Commit, texts: Texts) -> Iterator[Event]:
    """The saves of a commit, in turns among `AT_ONCE` files: one of each, then the next of each.

    So each save but the first finds the file's entry in front of those of the files worked on with
    it. A commit that changes more than `BULK` files is taken for a tool's work or a branch switch:
    each file is written once.
    """
    bulk = len(commit.changes) > BULK
    for start in range(0, len(commit.changes), AT_ONCE):
        some = commit.changes[start : start + AT_ONCE]
        turns = zip_longest(*(_events_of(change, texts, bulk=bulk) for change in some))
        for turn in turns:
            yield from filter(None, turn)


def _events_of(change: Change, texts: Texts, *, bulk: bool) -> Iterator[Event]:
    if change.text is None:
        yield Deleted(change.path)
        return
    if change.old_path:
        yield Renamed(change.old_path, change.path)
    old = texts.get(change.old_path or change.path)
    if old != change.text:
        for text in [change.text] if bulk else saves(old or "", change.text) or [change.text]:
            yield Written(change.path, text)


class _Project:
    """The files as they are, and what is known of them; a save takes a minute."""

    def __init__(self, start: Texts) -> None:
        self.texts = dict(start)
        self._commits: Counter[PurePosixPath] = Counter()
        self._edited: dict[PurePosixPath, float] = {}
        self._saved: list[PurePosixPath] = []
        self._now = 0.0

    def commit(self, commit: Commit) -> None:
        """What git knows after a commit, whose saves may or may not have been seen."""
        self._now = max(self._now, commit.time)
        for change in commit.changes:
            if change.old_path:
                self.texts.pop(change.old_path, None)
            self.texts.pop(change.path, None)
            if change.text is not None:
                self.texts[change.path] = change.text
            self._commits[change.path] += 1
            self._edited[change.path] = commit.time

    def save(self, event: Event) -> None:
        """What is on disk after an event."""
        self._now += 60
        match event:
            case Written(path, text):
                self.texts[path] = text
                self._saw(path)
            case Deleted(path):
                self.texts.pop(path, None)
            case Renamed(old, new) if old in self.texts:
                self.texts[new] = self.texts.pop(old)
                self._saw(new)

    def _saw(self, path: PurePosixPath) -> None:
        self._edited[path] = self._now
        others = [other for other in self._saved if other != path]
        self._saved = [*others, path][-OPEN:]

    def ranked(self) -> list[Ranked]:
        """All files, as they rank now; the files saved last are open."""
        edited, is_open = self._edited, set(self._saved)
        files = [
            File(path, text, edited.get(path, 0.0), path in is_open)
            for path, text in self.texts.items()
        ]
        history = {path: Commits(n, edited[path]) for path, n in self._commits.items()}
        return rank(files, history=history, now=self._now)


class _Ledger:
    """An overlay that lives through the saves, and what each of them cost."""

    def __init__(self, project: _Project, context: int) -> None:
        self._project, self._context = project, context
        self._budget = int(context * (1 - OVERLAY_SHARE))
        base = pack(project.ranked(), budget=self._budget, count=count).layout.segments
        limits = Limits(int(context * OVERLAY_SHARE))
        self._overlay = Overlay.over(base, limits=limits, count=count)
        self._place = {segment.path: place for place, segment in enumerate(base)}
        self._costs: dict[str, list[int]] = {way: [] for way in WAYS}
        self._superseded: list[float] = []
        self._compactions: list[int] = []
        self._not_shown = 0

    def save(self, event: Event) -> None:
        before, self._overlay = self._overlay, self._overlay.after(event)
        old = self._project.texts.get(event.path) if isinstance(event, Written) else None
        self._project.save(event)
        if self._overlay is before:
            self._not_shown += 1
            return
        self._enter(before, event, old)
        self._superseded.append(self._overlay.superseded_share)
        if self._overlay.compaction_due():
            self._compact()

    def _enter(self, before: Overlay, event: Event, old: str | None) -> None:
        after = self._overlay
        same = before.layout.common_front(after.layout) - len(after.base)
        self._costs["ours"].append(BLOCK + sum(entry.tokens for entry in after.entries[same:]))
        sizes = {path: shown.tokens for path, shown in after.shows.items()}
        for path in sizes:
            self._place.setdefault(path, len(self._place))
        paths = [event.old, event.new] if isinstance(event, Renamed) else [event.path]
        in_front = 0  # tokens of the file that the edit leaves as they are
        if isinstance(event, Written) and old is not None and event.path in sizes:
            in_front = int(_common_front(old, event.text) / BYTES_PER_TOKEN)
        self._costs["path_order"].append(_from(sizes, paths, in_front, key=lambda path: path))
        self._costs["hot_files_last"].append(
            _from(sizes, paths, in_front, key=lambda path: self._place.get(path, 0))
        )
        self._costs["from_nothing"].append(sum(sizes.values()))

    def _compact(self) -> None:
        before = self._overlay
        self._overlay = before.compacted(self._project.ranked(), budget=self._budget)
        base = self._overlay.base
        same = before.layout.common_front(self._overlay.layout)
        self._compactions.append(sum(segment.tokens(count) for segment in base[same:]))

    def figures(self) -> dict[str, Any]:
        ours = self._costs["ours"]
        return {
            "context": self._context,
            "saves": len(ours),
            "saves_that_changed_nothing_shown": self._not_shown,
            "computed": {way: spread(costs) for way, costs in self._costs.items()},
            "compactions": len(self._compactions),
            "computed_in_compactions": spread(self._compactions),
            "ours_with_compactions_mean": _rounded(
                (sum(ours) + sum(self._compactions)) / max(1, len(ours))
            ),
            "superseded_share": {
                "median": _rounded(statistics.median(self._superseded or [0])),
                "max": _rounded(max(self._superseded, default=0)),
                "at_tenths_of_the_time": [
                    _rounded(self._superseded[len(self._superseded) * tenth // 10 - 1])
                    for tenth in range(1, 11)
                    if self._superseded
                ],
            },
        }


def count(text: str) -> int:
    """The tokens of a text, near enough: its bytes over `BYTES_PER_TOKEN`."""
    return math.ceil(_bytes(text) / BYTES_PER_TOKEN)


def spread(values: Sequence[int]) -> dict[str, Any]:
    """What repeated edits cost."""
    if not values:
        return {"unit": "tokens", "samples": 0}
    ordered = sorted(values)
    return {
        "unit": "tokens",
        "median": _rounded(statistics.median(ordered)),
        "mean": _rounded(statistics.fmean(ordered)),
        "p90": _rounded(ordered[math.ceil(0.9 * len(ordered)) - 1]),
        "samples": len(ordered),
    }


def _from(
    sizes: dict[PurePosixPath, int], paths: Sequence[PurePosixPath], in_front: int, key: Any
) -> int:
    """Tokens from the first of `paths` on, in the order of `key`."""
    first = min(map(key, paths))
    return max(0, sum(size for path, size in sizes.items() if key(path) >= first) - in_front)


def _common_front(old: str, new: str) -> int:
    """How many characters are the same from the beginning on, by halving."""
    low, high = 0, min(len(old), len(new))
    while low < high:
        middle = (low + high + 1) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
