"""A git repository whose history is that of one file."""

import subprocess
from pathlib import Path

OLD = "".join(f"line_{n} = {n}\n" for n in range(40))
NEW = OLD.replace("line_20 = 20\n", "line_20 = twenty()\nadded = True\n")


def _commit(folder: Path, text: str) -> None:
    (folder / "a.py").write_text(text)
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    for arguments in (("add", "-A"), (*who, "commit", "-q", "-m", "x")):
        subprocess.run(["git", *arguments], cwd=folder, check=True)


def repository_of(folder: Path, *texts: str) -> Path:
    """Commit these versions of one file."""
    folder.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    for text in texts:
        _commit(folder, text)
    return folder
