"""What a repository is called, whichever of its work trees one is in."""

from pathlib import Path

import pytest
from indexer.tree_support import git, own_git_home, write
from qcn_indexer.git_folders import repository_name


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own_git_home(tmp_path / "home", monkeypatch)
    root = write(tmp_path / "shop", {"a.py": "a = 1\n", "pkg/b.py": "b = 1\n"})
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qm", "first")
    return root


def test_a_work_tree_is_called_as_its_repository(repo: Path) -> None:
    git(repo, "worktree", "add", "-q", "../hotfix")
    assert repository_name(repo.parent / "hotfix") == repository_name(repo) == "shop"


def test_a_work_tree_of_a_bare_repository_is_called_as_that_one(repo: Path) -> None:
    git(repo.parent, "clone", "-q", "--bare", "shop", "store.git")
    git(repo.parent / "store.git", "worktree", "add", "-q", "../hotfix")
    assert repository_name(repo.parent / "hotfix") == "store"


def test_a_submodule_keeps_its_own_name(repo: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "--quiet")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(repo), "lib/inner")
    assert (outer / "lib" / "inner" / ".git").is_file()
    assert repository_name(outer / "lib" / "inner") == "inner"


def test_any_other_folder_has_its_own_name(repo: Path, tmp_path: Path) -> None:
    assert repository_name(repo / "pkg") == "pkg"
    assert repository_name(tmp_path) == tmp_path.name
    link = tmp_path / "link"
    link.symlink_to(repo)
    assert repository_name(link) == "shop"
