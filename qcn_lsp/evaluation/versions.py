"""The version of a file before git's last change of it."""

from pathlib import Path, PurePosixPath

from qcn_indexer.git import git_blob, git_log
from qcn_indexer.secrets import looks_secret


def is_in_git(root: Path) -> bool:
    """Return whether git knows a history of the folder."""
    return bool(git_log(root, "--max-count=1", "--format=%H", "--", "."))


def version_before(root: Path, path: PurePosixPath, text: str) -> str | None:
    """Return the newest committed text of a file that is not `text`, out of its last two changes.

    None where there is none, or where it is not to be shown to a model.
    """
    listed = git_log(root, "--max-count=2", "--format=%H", "--", str(path))
    for commit in (listed or b"").decode().split():
        content = git_blob(root, commit, str(path))
        try:
            older = None if content is None else content.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        if older and older != text and "\0" not in older and not looks_secret(path, older):
            return older
    return None
