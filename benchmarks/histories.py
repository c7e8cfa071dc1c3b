"""Histories to replay: commits as whole texts, from a recorded trace or from a git repository.

A trace holds sizes and positions and no text, so its texts are made up: lines that differ from one
another, as many bytes as recorded. A recorded change says where its first byte lies, how many bytes
its span removed and inserted, and how long its unified diff was. Where the diff is shorter than the
span, only that many bytes change: half at the beginning of the span, half at its end.

A commit stands for many saves, which `saves` makes up: the changed lines appear from top to
bottom, one save for every `LINES_A_SAVE` of them, two at least and eight at most.
"""

import gzip
import itertools
import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qcn_indexer.blocks import hunks_of

TRACES = Path(__file__).resolve().parent / "data" / "edit-traces"
LONGEST = 512 * 1024  # bytes: a longer file is data, and no layout shows it
LINES_A_SAVE, FEWEST_SAVES, MOST_SAVES = 12, 2, 8

Texts = dict[PurePosixPath, str]


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit made of a file: no text where it is gone, an old path where it was moved."""

    path: PurePosixPath
    text: str | None
    old_path: PurePosixPath | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """Changes that came together."""

    time: float
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class History:
    """A repository as it was, and its commits from there on, oldest first."""

    name: str
    start: Texts
    commits: tuple[Commit, ...]


def saves(old: str, new: str) -> list[str]:
    """Return the texts that an editor might have saved on the way from `old` to `new`."""
    before, after = old.split("\n"), new.split("\n")
    hunks = hunks_of(before, after)
    steps = sum(max(i2 - i1, j2 - j1) for i1, i2, j1, j2 in hunks)
    count = min(max(-(-steps // LINES_A_SAVE), FEWEST_SAVES), MOST_SAVES)
    texts = [_partly(before, after, hunks, steps * save // count) for save in range(1, count)]
    return [text for text, _ in itertools.groupby((*texts, new)) if text != old]


def _partly(
    before: list[str], after: list[str], hunks: list[tuple[int, int, int, int]], steps: int
) -> str:
    """The text when so many of the changed lines have been typed."""
    lines: list[str] = []
    done = 0
    for i1, i2, j1, j2 in hunks:
        typed = min(steps, max(i2 - i1, j2 - j1))
        steps -= typed
        lines += before[done:i1] + after[j1 : min(j1 + typed, j2)]
        done = min(i1 + typed, i2)
        if typed < max(i2 - i1, j2 - j1):
            break
    return "\n".join(lines + before[done:])


def from_trace(path: Path) -> History:
    """Read a trace of `data/edit-traces`."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        head, *lines = map(json.loads, file)
    made_up = _Prose()
    start = {PurePosixPath(name): made_up.text(size) for name, size in head["files"].items()}
    texts = dict(start)
    commits = []
    for line in lines:
        changes = tuple(_recorded(change, texts, made_up) for change in line["changes"])
        commits.append(Commit(line["t"], changes))
    return History(head["repo"], start, tuple(commits))


def _recorded(change: dict[str, Any], texts: Texts, made_up: "_Prose") -> Change:
    path = PurePosixPath(change["path"])
    if change["kind"] == "delete":
        texts.pop(path, None)
        return Change(path, None)
    old_path = PurePosixPath(change["old_path"]) if change["kind"] == "rename" else None
    old = texts.pop(old_path or path, None)
    new = made_up.text(change["size"]) if old is None else made_up.edited(old, change)
    texts[path] = new
    return Change(path, new, old_path if old is not None else None)


class _Prose:
    """Text of a given length; no line of it comes twice."""

    def __init__(self) -> None:
        self._number = itertools.count()

    def text(self, size: int) -> str:
        lines = []
        while size > 0:
            line = f"{next(self._number):08x} = made up for its length"
            line = f"{line}\n"[-size:]
            lines.append(line)
            size -= len(line)
        return "".join(lines)

    def edited(self, old: str, change: dict[str, Any]) -> str:
        longer = change["size"] - len(old)
        at, span = min(change["at"], len(old)), change["removed"] + change["inserted"]
        changed = max(abs(longer), min(span, change.get("diff", span)))
        removed = min(max(0, (changed - longer) // 2), len(old) - at)
        inserted = removed + longer
        if inserted < 0:
            at, removed, inserted = max(0, at + inserted), -longer, 0
        first, first_new = removed // 2, inserted // 2
        again = min(max(at + first, at + change["removed"] - (removed - first)), len(old))
        again = min(again, len(old) - (removed - first))
        return (
            old[:at]
            + self.text(first_new)
            + old[at + first : again]
            + self.text(inserted - first_new)
            + old[again + removed - first :]
        )


def from_git(root: Path, *, name: str, commits: int) -> History:
    """Read the last first-parent commits of the repository at `root`, with their texts."""
    log = _git(root, "log", "--first-parent", f"--max-count={commits}", "--format=%H %ct")
    ids = [(line.split()[0], float(line.split()[1])) for line in log.decode().splitlines()][::-1]
    trees = [_tree(root, commit) for commit, _ in ids]
    moves = [_moves(root, older, newer) for (older, _), (newer, _) in itertools.pairwise(ids)]
    texts = _texts(root, {blob for tree in trees for blob in tree.values()})
    found = []
    for (before, after), moved, (_, time) in zip(
        itertools.pairwise(trees), moves, ids[1:], strict=True
    ):
        found.append(Commit(time, tuple(_changes(before, after, moved, texts))))
    return History(name, _known(trees[0], texts), tuple(found))


def _tree(root: Path, commit: str) -> dict[PurePosixPath, str]:
    """The blobs of a commit's files; no links, no submodules."""
    listing = _git(root, "ls-tree", "-r", "-z", "--full-tree", commit)
    tree = {}
    for line in filter(None, listing.decode("utf-8", "surrogateescape").split("\0")):
        about, _, path = line.partition("\t")
        mode, _, blob = about.split()
        if mode.startswith("100"):
            tree[PurePosixPath(path)] = blob
    return tree


def _moves(root: Path, older: str, newer: str) -> dict[PurePosixPath, PurePosixPath]:
    """New path to old path, of renames as git finds them."""
    listing = _git(
        root, "diff-tree", "-r", "-z", "-M", "--diff-filter=R", "--name-status", older, newer
    )
    fields = listing.decode("utf-8", "surrogateescape").split("\0")
    return {
        PurePosixPath(fields[i + 2]): PurePosixPath(fields[i + 1])
        for i in range(0, len(fields) - 2, 3)
    }


def _texts(root: Path, blobs: Iterable[str]) -> dict[str, str]:
    """The text of each blob that is text and not too long."""
    wanted = sorted(blobs)
    sizes = _git(root, "cat-file", "--batch-check=%(objectname) %(objectsize)", lines=wanted)
    short = [
        line.split()[0] for line in sizes.decode().splitlines() if int(line.split()[1]) <= LONGEST
    ]
    data = _git(root, "cat-file", "--batch=%(objectname) %(objectsize)", lines=short)
    texts, at = {}, 0
    for blob in short:
        end = data.index(b"\n", at)
        size = int(data[at:end].split()[1])
        content, at = data[end + 1 : end + 1 + size], end + 2 + size
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            texts[blob] = text
    return texts


def _known(tree: dict[PurePosixPath, str], texts: dict[str, str]) -> Texts:
    return {path: texts[blob] for path, blob in tree.items() if blob in texts}


def _changes(
    before: dict[PurePosixPath, str],
    after: dict[PurePosixPath, str],
    moved: dict[PurePosixPath, PurePosixPath],
    texts: dict[str, str],
) -> Iterator[Change]:
    old, new = _known(before, texts), _known(after, texts)
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path) and path not in moved.values() - new.keys():
            origin = moved.get(path)
            yield Change(path, new.get(path), origin if origin in old and path in new else None)


def _git(root: Path, *arguments: str, lines: Iterable[str] = ()) -> bytes:
    given = "".join(f"{line}\n" for line in lines).encode()
    done = subprocess.run(
        ["git", "--no-pager", *arguments], cwd=root, input=given, capture_output=True, check=True
    )
    return done.stdout
