"""Where a work tree's repository keeps its things, read from the files themselves.

Git need not be installed, and nothing of the repository is run. A `.git` that cannot be read or
understood is no repository.
"""

import os
from pathlib import Path

from qcn_indexer.files import read_file

# Each of these files holds one path.
_MOST_BYTES = 1 << 16


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
        kind, _, place = _line(dot_git).partition(": ")
    except OSError:
        return None
    named = folder / place
    return named if kind == "gitdir" and named.is_dir() else None


def repository_of(folder: Path) -> Path | None:
    """Return the repository that `folder` or the nearest folder above it is the top of, or None."""
    return next(filter(None, map(git_folder, (folder, *folder.parents))), None)


def shared_folder(git: Path) -> Path:
    """Return where a repository's work trees keep what they share, `info/exclude` for one."""
    try:
        return git / _line(git / "commondir")
    except OSError:
        return git


def repository_name(root: Path) -> str:
    """Return what all work trees of the repository whose top is `root` call it.

    That is the name of the folder that holds the first of them, or of a bare repository without
    its `.git`; of any other folder, its own.
    """
    root = root.resolve()
    git = git_folder(root)
    shared = git and shared_folder(git).resolve()
    if git is None or shared is None or shared == git.resolve():
        return root.name
    return shared.parent.name if shared.name == ".git" else shared.name.removesuffix(".git")


def _line(file: Path) -> str:
    return os.fsdecode(read_file(file, limit=_MOST_BYTES)).rstrip("\r\n")
