"""How often and when git last touched each file.

The repository may be anyone's, so git runs nothing that its configuration names: no pager, no
signature program, no text conversion; and it fetches nothing. Where there is no git, no repository,
no commit, or no answer in time, there is no history: ranking goes on without it.
"""

import os
import subprocess
from pathlib import Path, PurePosixPath

from qcn_indexer.ranking import Commits

LONGEST = 10.0  # seconds: on a huge repository the history is worth no longer wait


def history(root: Path, *, commits: int) -> dict[PurePosixPath, Commits]:
    """Return what the last `commits` commits say of the files below `root`, named from there."""
    command = ["git", "--no-pager", "log", f"--max-count={commits}", "--no-show-signature"]
    command += ["--no-ext-diff", "--no-textconv", "--no-renames", "--no-color", "--relative"]
    command += ["--name-only", "-z", "--format=tformat:%x01%ct"]
    environment = os.environ | {"GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0"}
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
        return {}
    return _read(os.fsdecode(done.stdout))


def _read(log: str) -> dict[PurePosixPath, Commits]:
    """Read `\\1<time>` once a commit, then its paths, all ended by a zero byte; newest first."""
    found: dict[PurePosixPath, Commits] = {}
    time = 0.0
    for field in log.split("\0"):
        field = field.removeprefix("\n")
        if field.startswith("\1"):
            time = float(field[1:])
        elif field:
            path = PurePosixPath(field)
            before = found.get(path, Commits(0, time))
            found[path] = Commits(before.count + 1, max(before.last, time))
    return found
