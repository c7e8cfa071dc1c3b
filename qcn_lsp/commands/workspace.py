"""Which folder commands take for a file's workspace."""

from pathlib import Path


def workspace_of(path: Path) -> Path:
    """Return the repository a file is in, or the folder it is in."""
    return next((up for up in path.parents if (up / ".git").exists()), path.parent)
