"""What git says of the files of a root."""

import os
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from qcn_indexer.history import history
from qcn_indexer.ranking import Commits


class Repository:
    """A repository in which every commit has its time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "--quiet")

    def git(self, *arguments: str, time: int = 0) -> None:
        who = {
            f"GIT_{who}_{what}": "x"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        when = {f"GIT_{who}_DATE": f"{time} +0000" for who in ("AUTHOR", "COMMITTER")}
        subprocess.run(
            ["git", *arguments],
            cwd=self.root,
            check=True,
            capture_output=True,
            env=os.environ | who | when | {"GIT_CONFIG_GLOBAL": os.devnull},
        )

    def commit(self, time: int, **files: str) -> None:
        for name, text in files.items():
            path = self.root / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "x", time=time)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path)
    repository.commit(1_000_000_000, a="1", sub__ünï="1")
    repository.commit(1_000_000_100, a="2")
    repository.commit(1_000_000_200, b="1")
    return repository


def test_what_a_hook_has_set_for_another_repository_does_not_hold(
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """As where an editor is opened by `git commit`, or a hook starts a program."""
    here = history(repository.root, commits=100)
    other = Repository(tmp_path_factory.mktemp("other"))
    other.commit(1_000_000_300, c="1")
    monkeypatch.setenv("GIT_DIR", str(other.root / ".git"))
    assert history(repository.root, commits=100) == here


def test_each_file_has_its_number_of_commits_and_the_time_of_the_last(
    repository: Repository,
) -> None:
    assert history(repository.root, commits=100) == {
        PurePosixPath("a"): Commits(2, 1_000_000_100.0),
        PurePosixPath("b"): Commits(1, 1_000_000_200.0),
        PurePosixPath("sub/ünï"): Commits(1, 1_000_000_000.0),
    }


def test_only_the_last_commits_are_looked_at(repository: Repository) -> None:
    assert set(history(repository.root, commits=2)) == {PurePosixPath("a"), PurePosixPath("b")}


def test_a_root_inside_a_repository_names_its_files_from_there(repository: Repository) -> None:
    assert set(history(repository.root / "sub", commits=100)) == {PurePosixPath("ünï")}


def test_without_a_repository_or_without_git_there_is_no_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert history(tmp_path, commits=10) == {}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert history(tmp_path, commits=10) == {}
    assert history(tmp_path / "gone", commits=10) == {}


def test_nothing_that_the_repository_configures_is_run(repository: Repository) -> None:
    trap = repository.root / "trap"
    trap.write_text("#!/bin/sh\ntouch sprung\n")
    trap.chmod(0o755)
    for key in ("gpg.program", "core.pager", "diff.external", "core.fsmonitor"):
        repository.git("config", key, str(trap))
    repository.git("config", "log.showSignature", "true")
    assert history(repository.root, commits=10)
    assert not (repository.root / "sprung").exists()
