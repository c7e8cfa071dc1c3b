"""Which of the open files the model sees in front of the current one, and in what order.

Guarantees:
- Only files of the workspace root that the current file belongs to; a file outside every root
  has no company.
- Never what is ignored, looks like a secret, is binary, or more than the budget. A file is shown
  whole or not at all, and each one left out carries its reason.
- The order is least recently used first. Typing in one file does not change the order of the
  others, so an engine's prefix cache keeps holding; and the file one came from, which changed
  last, stands last, so that what it invalidates is only itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qcn_indexer.ignore import UserRules, ignore_at
from qcn_indexer.names import unfit_file
from qcn_indexer.secrets import looks_secret, secret_by_name
from qcn_indexer.walk import EMPTY_FILE, Skipped, walk

# Characters of all other files together: about 2,500 tokens, read once for as long as they stay
# as they are. A small model on a CPU takes a second or two for them.
BUDGET = 8_000


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file as its editor holds it."""

    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class ShownFile:
    """A file as the model sees it: its path below the root, with forward slashes."""

    path: PurePosixPath
    text: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What is shown, in its order, and why the rest is not."""

    shown: tuple[ShownFile, ...]
    left_out: tuple[tuple[Path, str], ...]


def root_of(path: Path, roots: Sequence[Path]) -> Path | None:
    """Return the innermost of `roots` that holds `path`, or None."""
    holding = [root for root in roots if path.is_relative_to(root)]
    return max(holding, key=lambda root: len(root.parts), default=None)


def withheld(root: Path, path: PurePosixPath, users: UserRules | None = None) -> str | None:
    """Return why the rules of the workspace folder keep a file from the model, or None.

    The same rules as for what is read from disk; a file that is not there, such as an open one that
    was not saved yet, is judged by its name. Reads the rules' files and, without the `users`' own,
    asks git for its settings, so it takes some milliseconds.
    """
    judged = next(iter(walk(root, [path], users)), None)
    if isinstance(judged, Skipped) and (judged.path, judged.reason) != (path, EMPTY_FILE):
        return judged.reason
    if judged is not None:
        return None
    rules = ignore_at(root, users)
    for folder in path.parts[:-1]:
        rules = rules.inside(folder)
    return (
        rules.whole
        or secret_by_name(path)
        or unfit_file(path.name)
        or rules.reason(path.name, is_folder=False)
    )


def choose(
    open_files: Sequence[OpenFile],
    *,
    root: Path,
    roots: Sequence[Path],
    ruled_out: Callable[[PurePosixPath], str | None],
    budget: int = BUDGET,
) -> Selection:
    """Return which of `open_files` (most recently used last) to show beside a file of `root`.

    `ruled_out` is what `withheld` says of a path below `root`. `budget` is in characters. The most
    recently used files that fit are taken.
    """
    shown: list[ShownFile] = []
    left_out: list[tuple[Path, str]] = []
    for file in reversed(open_files):
        if root_of(file.path, roots) != root:
            left_out.append((file.path, "it belongs to another workspace folder, or to none"))
            continue
        path = PurePosixPath(file.path.relative_to(root).as_posix())
        if reason := _unfit(path, file.text, budget) or ruled_out(path):
            left_out.append((file.path, reason))
        else:
            shown.append(ShownFile(path, file.text))
            budget -= len(file.text)
    return Selection(tuple(reversed(shown)), tuple(reversed(left_out)))


def _unfit(path: PurePosixPath, text: str, budget: int) -> str | None:
    if len(text) > budget:
        return f"it is longer than what is left of the budget ({budget} characters)"
    if not text.strip():
        return "it is empty"
    if "\0" in text:
        return "it is binary"
    return looks_secret(path, text)
