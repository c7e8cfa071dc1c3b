"""Where a work tree's repository keeps its things, read from the files themselves.

Git need not be installed, and nothing of the repository is run. A `.git` that cannot be read or
understood is no repository.
"""

from pathlib import Path


def git_folder(folder: Path) -> Path | None:
    """Return the repository of a work tree whose top is `folder`, or None if it is no such top.

    `.git` is a folder, or in linked work trees and submodules a file that names one. HEAD, the
    index and their locks are there.
    """
    dot_git = folder / ".git"
    try:
        if dot_git.is_dir():
            return dot_git
        if not dot_git.is_file():
            return None
        kind, _, place = dot_git.read_text(encoding="utf-8").partition(": ")
    except (OSError, UnicodeError):
        return None
    named = folder / place.rstrip("\n")
    return named if kind == "gitdir" and named.is_dir() else None


def shared_folder(git: Path) -> Path:
    """Return where a repository's work trees keep what they share, `info/exclude` for one."""
    try:
        return git / (git / "commondir").read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeError):
        return git
