"""Trees of files for the tests of the indexer, and git beside them as the judge."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from deadlines import DEADLINE_SECONDS


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Make the files, with the folders they need, and return `root`."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def own_git_home(home: Path, patch: pytest.MonkeyPatch) -> Path:
    """Have git read a user's settings from a folder of the test's own, and return that."""
    home.mkdir(parents=True, exist_ok=True)
    patch.setenv("HOME", str(home))
    patch.delenv("XDG_CONFIG_HOME", raising=False)
    patch.delenv("GIT_CONFIG_GLOBAL")
    return home


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    ran = subprocess.run(
        ["git", "-C", folder, *arguments],
        input=stdin,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
    )
    assert ran.returncode in (0, 1), ran.stderr
    return ran.stdout


def git_says(folder: Path, paths: list[str]) -> dict[str, str | None]:
    """Return for each path the line by which git ignores it, in our words, or None."""
    stdin = b"".join(os.fsencode(path) + b"\0" for path in paths)
    answer = git(folder, "check-ignore", "--no-index", "-vnz", "--stdin", stdin=stdin)
    fields = [os.fsdecode(field) for field in answer.split(b"\0")]
    said: dict[str, str | None] = {}
    for source, line, pattern, path in zip(*(iter(fields),) * 4, strict=False):
        ignores = bool(source) and not pattern.startswith("!")
        if source.startswith("/"):
            source = f"the user's {Path(source).name}"
        said[path] = f"ignored by {source}, line {line}" if ignores else None
    return said
