"""Open buffers beside the disk: which text of a file the layout has, and of which files none."""

import subprocess
from pathlib import Path, PurePosixPath

import pytest
from layout_reader import read
from qcn_indexer.changes import EVERYTHING

from qcn_lsp.context import repository as module
from qcn_lsp.context.repository import Repository

A, NEW = PurePosixPath("a.py"), PurePosixPath("lib/new.py")
SECRET = "key = 'ghp_" + "a1B2c3D4e5" * 3 + "f6G7h8'  # TYPED\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / ".gitignore").write_text("private.py\n")
    for name in ("a.py", "b.py", "private.py"):
        (root / name).write_text(f"# {name} as it was saved\n" * 9)
    return root


@pytest.fixture
def repository(root: Path) -> Repository:
    repository = Repository(root, count=lambda text: len(text) // 4, budget=8000)
    repository.read({})
    return repository


def look(repository: Repository) -> None:
    repository.take_in(repository.look(EVERYTHING))


def text_of(repository: Repository, path: PurePosixPath) -> str | None:
    known = read(repository.layout.segments).get(path)
    return None if known is None else known[1]


def everything(repository: Repository) -> str:
    return "".join(f"{one.path}\n{one.text}" for one in repository.layout.segments)


def test_a_buffer_counts_for_more_than_the_disk_until_it_is_closed(
    root: Path, repository: Repository
) -> None:
    repository.show({A: "typed = 1\n", NEW: "typed = 1\n"})
    assert text_of(repository, A) == text_of(repository, NEW) == "typed = 1\n"
    (root / A).write_text("saved = 1\n")
    look(repository)
    assert text_of(repository, A) == "typed = 1\n"
    repository.show({A: "typed = 2\n"})
    assert text_of(repository, A) == "typed = 2\n"
    assert text_of(repository, NEW) is None
    repository.show({})
    assert text_of(repository, A) == "saved = 1\n"


def test_the_file_that_is_completed_in_stays_as_it_was_shown(repository: Repository) -> None:
    repository.show({A: "typed = 1\n"})
    before = repository.layout
    repository.show({A: "typed = 2\n"}, A)
    assert repository.layout == before


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("private.py", "TYPED"),
        ("lib/private.py", "TYPED"),  # never saved
        (".env", "TYPED"),
        ("two\nlines.py", "TYPED"),
        ("a.py", SECRET),
        ("lib/new.py", SECRET),
    ],
)
def test_a_buffer_that_must_not_be_read_is_in_no_layout(
    repository: Repository, path: str, text: str
) -> None:
    repository.show({PurePosixPath(path): text})
    assert "TYPED" not in everything(repository)
    assert text_of(repository, PurePosixPath(path)) is None


@pytest.mark.parametrize("by", [".gitignore", "the user's own rules"])
def test_a_buffer_that_becomes_ignored_is_taken_out_and_forgotten(
    root: Path, repository: Repository, by: str
) -> None:
    buffers = {A: "TYPED\n", NEW: "TYPED\n"}
    repository.show(buffers)
    assert everything(repository).count("TYPED") == 2
    rules = root / ".gitignore" if by == ".gitignore" else root.parent / "ignored"
    rules.write_text("a.py\nnew.py\n")
    setting = ["git", "-C", str(root), "config", "core.excludesFile", str(root.parent / "ignored")]
    subprocess.run(setting, check=True)
    look(repository)
    assert repository.purge
    for _ in range(2):
        assert "TYPED" not in everything(repository)
        assert text_of(repository, A) is text_of(repository, NEW) is None
        repository.show(buffers)


@pytest.mark.parametrize("how", ["deleted", "ignored"])
def test_where_too_much_changes_at_once_only_what_is_still_there_is_forgotten(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "MOST_EVENTS", 1)
    if how == "ignored":
        (root / ".gitignore").write_text("[ab].py\n")
    else:
        (root / "a.py").unlink()
        (root / "b.py").unlink()
    look(repository)
    assert repository.outdated
    assert repository.purge == (how == "ignored")
    assert repository.swap(repository.compacted({}), repository.layout)
    assert not repository.outdated
    assert text_of(repository, A) is None


@pytest.mark.parametrize(
    ("given", "forgotten"), [("a.py", False), ("gone.py", False), ("private.py", True)]
)
def test_of_what_an_earlier_process_gave_the_engine_what_is_ignored_now_is_forgotten(
    repository: Repository, given: str, forgotten: bool
) -> None:
    repository.judge_given([A, PurePosixPath(given)])
    assert repository.purge == forgotten
