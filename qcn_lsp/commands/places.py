"""The choice of places at which `qcn demo` completes: real ones, and the same at every run.

A place is a line of code of which the rest is deleted: an argument list, the value of an
assignment, what is returned, a condition, an attribute, the first line of a body. No comments,
no blank lines, no text inside a string that spans lines, nothing of fewer than `MIN_REST`
characters to guess.
"""

import random
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from qcn_lsp.positions import plain_lines

SEED = 20
MIN_REST, MAX_REST = 4, 48
MAX_FILE_BYTES = 100_000
MIN_LINES = 15
MOST_FILES = 20_000  # of a folder that is no repository: a home directory, say

_CODE = {
    *(".c", ".cc", ".cpp", ".cs", ".go", ".h", ".hpp", ".java", ".js", ".jsx", ".kt", ".lua"),
    *(".mjs", ".php", ".py", ".pyi", ".rb", ".rs", ".sh", ".swift", ".ts", ".tsx"),
}
_SKIPPED_FOLDERS = {"node_modules", "venv", "build", "dist", "target", "__pycache__"}
_COMMENT = re.compile(r"\s*(#|//|/\*|\*|--|<!--|\"\"\"|''')")
# In the order in which they are tried: the kind of a place, and what stands before the cursor.
_CUTS = (
    ("returned value", re.compile(r"^\s*(?:return|yield|raise|await) (?=\S)")),
    ("condition", re.compile(r"^\s*(?:el)?(?:if|while) \(?(?=\S)")),
    ("loop", re.compile(r"^\s*for \S+ (?:in|of) (?=\S)")),
    ("value", re.compile(r"^\s*[\w.\[\]]+(?:: [^=()]+)? :?= (?=\S)")),
    ("arguments", re.compile(r"^.*?\b\w+\((?=[^)\s])")),
    ("attribute", re.compile(r"^.*?\b(?:self|this|cls)\.(?=\w)")),
)
_OPENS_BODY = re.compile(r"^\s*(?:async )?(?:def|function|fn|func)\b.*[:{]\s*$")


@dataclass(frozen=True)
class Place:
    """Where the rest of a line is deleted: `line` and `column` count from 0, in characters."""

    path: Path
    line: int
    column: int
    kind: str
    before: str
    rest: str


def choose_places(root: Path, *, count: int, per_file: int) -> list[Place]:
    """Return `count` places in files below `root`, or fewer where there is little code."""
    chooser = random.Random(SEED)  # the same places at every run
    files = source_files(root)
    chooser.shuffle(files)
    files.sort(key=_is_test)  # of the two, the product's code is the more telling
    chosen: list[Place] = []
    kinds: dict[str, int] = {}
    for path in files:
        if len(chosen) >= count:
            break
        found = places_in(path)
        chooser.shuffle(found)
        # The kinds that have been shown least come first.
        for _ in range(min(per_file, count - len(chosen))):
            if found:
                place = min(found, key=lambda place: kinds.get(place.kind, 0))
                kinds[place.kind] = kinds.get(place.kind, 0) + 1
                found = [other for other in found if abs(other.line - place.line) > 1]
                chosen.append(place)
    return sorted(chosen, key=lambda place: (files.index(place.path), place.line))


def source_files(root: Path) -> list[Path]:
    """Return the source files of a repository in a fixed order: those git knows, or all."""
    if root.is_file():
        return [root]
    listed = _git_files(root)
    candidates = islice(_walked(root), MOST_FILES) if listed is None else listed
    return sorted(
        path for path in candidates if path.suffix.lower() in _CODE and _is_readable(path)
    )


def places_in(path: Path) -> list[Place]:
    """Return every place of one file that is worth completing."""
    try:
        lines = plain_lines(path.read_bytes().decode("utf-8"))
    except (OSError, UnicodeDecodeError):
        return []
    if len(lines) < MIN_LINES:
        return []
    found = []
    inside_string = False
    for number, line in enumerate(lines):
        fences = line.count('"""') + line.count("'''")
        plain = not (inside_string or fences or _COMMENT.match(line))
        inside_string ^= fences % 2 == 1
        if plain and (place := _cut(path, number, line, lines[number - 1] if number else "")):
            found.append(place)
    return found


def _cut(path: Path, number: int, line: str, above: str) -> Place | None:
    if _OPENS_BODY.match(above) and line.strip():
        column = len(line) - len(line.lstrip())
        return _fit(Place(path, number, column, "body", line[:column], line[column:].rstrip()))
    for kind, pattern in _CUTS:
        if match := pattern.match(line):
            end = match.end()
            return _fit(Place(path, number, end, kind, line[:end], line[end:].rstrip()))
    return None


def _fit(place: Place) -> Place | None:
    return place if MIN_REST <= len(place.rest) <= MAX_REST else None


def _git_files(root: Path) -> list[Path] | None:
    """Return the tracked files below `root`; None where git or a repository is missing."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(root), "ls-files", "-z"],
            capture_output=True,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    names = listed.decode("utf-8", "surrogateescape").split("\0")
    return [root / name for name in names if name] or None


def _walked(root: Path) -> Iterator[Path]:
    try:
        entries = sorted(root.iterdir())
    except OSError:
        return  # a folder that may not be read
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _SKIPPED_FOLDERS or entry.is_symlink():
            continue
        if entry.is_dir():
            yield from _walked(entry)
        else:
            yield entry


def _is_test(path: Path) -> bool:
    return any(part.lower().startswith("test") for part in path.parts[-3:])


def _is_readable(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size <= MAX_FILE_BYTES
    except OSError:
        return False
