"""The version of a file before git's last change of it."""

import os
import subprocess
from pathlib import Path, PurePosixPath

from qcn_indexer.secrets import looks_secret

LONGEST = 10.0  # seconds


def is_in_git(root: Path) -> bool:
    """Return whether git knows a history of the folder."""
    return _git(root, "log", "--max-count=1", "--format=%H", "--", ".") not in (None, b"")


def version_before(root: Path, path: PurePosixPath, text: str) -> str | None:
    """Return the newest committed text of a file that is not `text`, out of its last two changes.

    None where there is none, or where it is not to be shown to a model.
    """
    listed = _git(root, "log", "--max-count=2", "--format=%H", "--", str(path))
    for commit in (listed or b"").decode().split():
        content = _git(root, "cat-file", "blob", f"{commit}:./{path}")
        try:
            older = None if content is None else content.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        if older and older != text and "\0" not in older and not looks_secret(path, older):
            return older
    return None


def _git(root: Path, *arguments: str) -> bytes | None:
    """Run git, which runs nothing itself that the repository's configuration names."""
    environment = os.environ | {
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_LITERAL_PATHSPECS": "1",
    }
    command = ["git", "--no-pager", *arguments]
    if arguments[0] == "log":
        command[3:3] = ["--no-show-signature", "--no-ext-diff", "--no-textconv", "--no-color"]
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LONGEST,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
