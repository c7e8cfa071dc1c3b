"""From events to places to look at: bursts, rules, lost events, and git at work."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexer.tree_support import git, own_git_home
from qcn_indexer.changes import (
    EVERYTHING,
    LOCK_PAUSE,
    LONGEST_BURST,
    LONGEST_LOCK,
    MOST_PATHS,
    MOST_PLACES,
    QUIET,
    Changes,
)
from sampling import examples


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own_git_home(tmp_path / "home", monkeypatch)
    root = tmp_path / "repo"
    root.mkdir()
    git(root, "init", "--quiet")
    return root


def places(root: Path, *paths: str) -> set[str]:
    changes = Changes(root)
    for path in paths:
        changes.add(root / path, 0.0)
    return {str(place) for place in changes.take()}


def test_a_changed_file_is_the_place_to_look_at(root: Path) -> None:
    assert places(root, "src/a.py", "src/a.py", "b.py") == {"src/a.py", "b.py"}


def test_a_folder_stands_for_what_lies_below_it(root: Path) -> None:
    assert places(root, "src/a.py", "src", "src/b/c.py", "lib/a.py") == {"src", "lib/a.py"}


@pytest.mark.parametrize("rules", [".gitignore", ".ignore", ".qcnignore", "CACHEDIR.TAG"])
def test_changed_rules_stand_for_all_that_they_hold_for(root: Path, rules: str) -> None:
    assert places(root, f"src/{rules}") == {"src"}
    assert places(root, rules) == {"."}


def test_gits_own_files_are_no_concern_but_its_rules_are(root: Path) -> None:
    assert places(root, ".git/index", ".git/objects/ab/cd", "lib/.git/HEAD") == set()
    assert places(root, ".git/info/exclude") == {"."}
    assert places(root, "lib/.git") == {"lib"}, "a repository that came or went"


def test_what_is_never_walked_is_no_concern(root: Path) -> None:
    assert places(root, "node_modules/a/index.js", "app/.venv/lib/a.py", ".ssh/config") == set()
    assert places(root, "vendor") == {"vendor"}, "it may be a file"


def test_what_lies_outside_is_no_concern(root: Path) -> None:
    changes = Changes(root)
    changes.add(root.parent / "a.py", 0.0)
    assert (changes.take(), changes.delay(0.0)) == (frozenset(), None)


def test_events_may_name_the_folder_as_it_was_opened_or_as_it_is(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    changes = Changes(link)
    changes.add(link / "a.py", 0.0)
    changes.add(root / "b.py", 0.0)
    assert {str(place) for place in changes.take()} == {"a.py", "b.py"}


def test_a_switch_of_branches_is_a_few_folders(root: Path) -> None:
    files = [f"pkg{folder}/{file}.py" for folder in range(100) for file in range(60)]
    assert places(root, *files) == {f"pkg{folder}" for folder in range(100)}


def test_a_change_everywhere_is_everything(root: Path) -> None:
    assert places(root, *(f"{n}/a/b.py" for n in range(MOST_PLACES + 1))) == {"."}
    changes = Changes(root)
    for n in range(MOST_PATHS + 1):
        changes.add(root / "deep" / f"{n}", 0.0)
    assert changes.take() == EVERYTHING


def test_lost_events_are_everything(root: Path) -> None:
    changes = Changes(root)
    changes.add(root / "a.py", 0.0)
    changes.add_everything(0.0)
    changes.add(root / "b.py", 0.0)
    assert changes.take() == EVERYTHING
    assert changes.take() == frozenset()


def test_a_burst_is_waited_for_until_it_is_quiet_or_long(root: Path) -> None:
    changes = Changes(root)
    assert changes.delay(0.0) is None
    changes.add(root / "a.py", 10.0)
    assert changes.delay(10.0) == pytest.approx(QUIET)
    changes.add(root / "b.py", 10.1)
    assert changes.delay(10.1) == pytest.approx(QUIET)
    assert changes.delay(10.1 + QUIET) == 0
    now = 10.1
    while now < 10.0 + LONGEST_BURST:
        now += QUIET / 2
        changes.add(root / "c.py", now)
    assert changes.delay(now) == 0


@pytest.mark.parametrize("lock", ["index.lock", "HEAD.lock"])
def test_git_is_waited_for_while_it_holds_a_lock(root: Path, lock: str) -> None:
    changes = Changes(root / "pkg")  # the repository's top may lie above the workspace folder
    (root / "pkg").mkdir()
    changes.add(root / "pkg" / "a.py", 0.0)
    (root / ".git" / lock).touch()
    assert changes.delay(1.0) == LOCK_PAUSE
    (root / ".git" / lock).unlink()
    assert changes.delay(1.2) == 0


def test_a_rebase_that_waits_for_its_user_is_no_lock(root: Path) -> None:
    (root / ".git" / "rebase-merge").mkdir()
    (root / ".git" / "MERGE_HEAD").touch()
    changes = Changes(root)
    changes.add(root / "a.py", 0.0)
    assert changes.delay(1.0) == 0


def test_the_lock_of_a_killed_git_is_not_believed_for_ever(root: Path) -> None:
    changes = Changes(root)
    changes.add(root / "a.py", 0.0)
    (root / ".git" / "index.lock").touch()
    assert changes.delay(1.0) == LOCK_PAUSE
    assert changes.delay(1.0 + LONGEST_LOCK) == 0
    assert changes.take()
    changes.add(root / "a.py", 100.0)
    assert changes.delay(101.0) == 0, "nor again for the next change"


def test_whoever_waits_is_woken(root: Path) -> None:
    woken: list[int] = []
    changes = Changes(root, wake=lambda: woken.append(1))
    changes.add(root / ".git" / "index", 0.0)
    assert not woken
    changes.add(root / "a.py", 0.0)
    assert woken


names = st.sampled_from(["a", "b", "c.py", ".gitignore", ".git"])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@pytest.mark.long
@examples(sample=200, full=3000)
@given(paths=st.lists(paths, max_size=30))
def test_every_event_lies_at_or_below_a_place_and_no_place_below_another(
    tmp_path: Path, paths: list[str]
) -> None:
    changes = Changes(tmp_path)
    for path in paths:
        changes.add(tmp_path / path, 0.0)
    taken = changes.take()
    for event in map(PurePosixPath, paths):
        if ".git" not in event.parts:
            assert any(event.is_relative_to(place) for place in taken)
    assert not any(place in other.parents for place in taken for other in taken)
