"""Questions to git about a folder that may be anyone's.

So git runs nothing that the repository's configuration names: no pager, no signature program, no
text conversion; and it fetches and writes nothing. What a hook, or the commit that the editor was
opened for, has set for a repository of its own does not hold for this folder.
"""

import os
import shutil
import subprocess
from pathlib import Path

LONGEST = 10.0  # seconds: nothing that is asked here is worth a longer wait
_ENVIRONMENT = {"GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0", "GIT_LITERAL_PATHSPECS": "1"}
_OF_ANOTHER = {
    f"GIT_{what}"
    for what in [
        "DIR",
        "WORK_TREE",
        "COMMON_DIR",
        "PREFIX",
        "INDEX_FILE",
        "OBJECT_DIRECTORY",
        "ALTERNATE_OBJECT_DIRECTORIES",
    ]
}
_LOG = ["--no-show-signature", "--no-ext-diff", "--no-textconv", "--no-color"]


def git_program(root: Path) -> str | None:
    """Return the path of git; None where there is none but what the folder itself holds."""
    found = shutil.which("git")
    if found is None or Path(found).resolve().is_relative_to(root.resolve()):
        return None
    return str(Path(found).absolute())


def git_log(root: Path, *arguments: str) -> bytes | None:
    """Return what `git log` says below `root`; None where there is no git, history, or answer."""
    return _ask(root, ["log", *_LOG, *arguments])


def git_blob(root: Path, commit: str, path: str) -> bytes | None:
    """Return the content of a file, named from `root`, in a commit; None where there is none."""
    return _ask(root, ["cat-file", "blob", f"{commit}:./{path}"])


def git_settings(root: Path, names: str) -> bytes | None:
    """Return the settings whose names match an expression, those of paths with `~` resolved.

    Each is a name, a line feed, its value and a NUL. None where there is no git, or no such one.
    """
    return _ask(root, ["config", "--null", "--type=path", "--get-regexp", names])


def _ask(root: Path, arguments: list[str]) -> bytes | None:
    git = git_program(root)
    if git is None:
        return None
    try:
        done = subprocess.run(
            [git, "--no-pager", *arguments],
            cwd=root,
            env={key: text for key, text in os.environ.items() if key not in _OF_ANOTHER}
            | _ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LONGEST,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
