"""How often and when git last touched each file.

Where there is no git, no repository, no commit, or no answer in time, there is no history: ranking
goes on without it.
"""

import os
from pathlib import Path, PurePosixPath

from qcn_indexer.git import git_log
from qcn_indexer.ranking import Commits


def history(root: Path, *, commits: int) -> dict[PurePosixPath, Commits]:
    """Return what the last `commits` commits say of the files below `root`, named from there."""
    names = ["--no-renames", "--relative", "--name-only", "-z", "--format=tformat:%x01%ct"]
    log = git_log(root, f"--max-count={commits}", *names)
    return {} if log is None else _read(os.fsdecode(log))


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
