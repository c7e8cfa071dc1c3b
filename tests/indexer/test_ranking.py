"""Which files are worth reading first, and which are likely to change."""

from pathlib import PurePosixPath as Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qcn_indexer.ranking import BULK, HOT_AT_MOST, POINTS, Commits, File, Ranked, likeliest, rank
from sampling import examples

NOW = 1_700_000_000.0
LONG_AGO = NOW - 1e9
DAY = 24 * 3600.0


def file(path: str, text: str = "", *, edited: float = LONG_AGO, opened: bool = False) -> File:
    return File(Path(path), text, edited, opened)


def ranked(*files: File, history: dict[str, Commits] | None = None) -> list[Ranked]:
    commits = {Path(path): found for path, found in (history or {}).items()}
    return rank(files, history=commits, now=NOW)


def names(files: list[Ranked]) -> list[str]:
    return [str(one.path) for one in files]


def test_what_is_open_comes_first_then_what_it_imports_then_what_that_imports() -> None:
    files = ranked(
        file("far.py"),
        file("types.py", "import far\n"),
        file("zebra.py", "import types\n", opened=True),
        file("aside/other.py"),
        file("user.py", "import zebra\n"),
    )
    assert names(files) == ["zebra.py", "types.py", "user.py", "far.py", "aside/other.py"]
    assert files[0].reasons[0] == "open"
    assert "one import away" in files[1].reasons
    assert "two imports away" in files[3].reasons


@pytest.mark.parametrize(
    ("source", "test"),
    [
        ("src/cache.py", "tests/test_cache.py"),
        ("src/cache.go", "src/cache_test.go"),
        ("src/cache.ts", "src/cache.spec.ts"),
        ("src/Cache.java", "test/CacheTest.java"),
    ],
)
def test_a_test_stands_beside_its_source_and_the_source_beside_its_test(
    source: str, test: str
) -> None:
    for opened, other in ((source, test), (test, source)):
        files = ranked(file("src/aaa.x"), file(other), file(opened, opened=True))
        assert names(files)[:2] == [opened, other]
        assert "tests it, or is tested by it" in files[1].reasons


def test_edits_and_commits_count_the_less_the_older_they_are() -> None:
    files = ranked(
        file("week.py", edited=NOW - 7 * DAY),
        file("hour.py", edited=NOW - 3600),
        file("day.py", edited=NOW - DAY),
        file("committed.py"),
        file("often.py"),
        history={
            "committed.py": Commits(1, NOW - 60 * DAY),
            "often.py": Commits(20, NOW - 60 * DAY),
        },
    )
    assert names(files) == ["hour.py", "day.py", "often.py", "committed.py", "week.py"]


def test_the_times_of_a_checkout_are_nobodys_edits() -> None:
    cloned = [file(f"{number:03}.py", edited=NOW - 5) for number in range(BULK + 1)]
    files = ranked(*cloned, file("zz.py", edited=NOW - 600))
    assert names(files)[0] == "zz.py"
    assert [one.path.name for one in files if one.hot] == ["zz.py"]


def test_readme_and_build_files_at_the_root_tell_what_the_project_is() -> None:
    files = ranked(file("a.py"), file("docs/sub/README.md"), file("pyproject.toml"))
    assert names(files) == ["pyproject.toml", "docs/sub/README.md", "a.py"]


def test_open_files_are_the_hottest_and_hot_files_are_few() -> None:
    edited = [file(f"{number}.py", edited=NOW - 60 * number) for number in range(40)]
    files = ranked(*edited, file("open.py", opened=True))
    assert max(files, key=lambda one: one.heat).path.name == "open.py"
    assert sum(one.hot for one in files) == HOT_AT_MOST
    assert not any(one.hot for one in ranked(file("a.py"), file("b.py")))


def test_an_open_file_outranks_any_other() -> None:
    assert POINTS["open"] == max(POINTS.values())


def test_of_more_than_can_be_ranked_those_are_chosen_that_matter() -> None:
    """A fresh clone: all was written at once, and one old commit brought most of it."""
    clone = [f"src/part{i % 50:02}/deep/file{i:04}.py" for i in range(2000)]
    special = ["a/b/open.py", "a/b/beside.py", "zz/busy.py", "README.md"]
    history = {Path(path): Commits(1, LONG_AGO) for path in (*clone, *special)}
    history[Path("zz/busy.py")] = Commits(30, NOW - DAY)
    chosen = likeliest(
        dict.fromkeys((*clone, *special), NOW - 5),
        opened={"a/b/open.py"},
        history=history,
        now=NOW,
        at_most=4,
    )
    assert chosen == ["a/b/open.py", "zz/busy.py", "README.md", "a/b/beside.py"]


def test_where_all_can_be_ranked_all_are_chosen() -> None:
    paths = {"b.py": NOW, "a.py": LONG_AGO}
    assert likeliest(paths, opened=(), history={}, now=NOW, at_most=2) == ["a.py", "b.py"]


FILES = st.lists(
    st.builds(
        File,
        st.sampled_from(["a.py", "b.py", "tests/test_a.py", "README.md", "c/d.ts"]).map(Path),
        st.sampled_from(["", "import a\n", "from b import x\n"]),
        st.floats(0, NOW + DAY),
        st.booleans(),
    ),
    unique_by=lambda one: one.path,
)
HISTORY = st.dictionaries(
    st.sampled_from(["a.py", "b.py", "gone.py"]).map(Path),
    st.builds(Commits, st.integers(1, 500), st.floats(0, NOW + DAY)),
)


@pytest.mark.long
@examples(sample=100, full=2000)
@given(files=FILES, history=HISTORY, order=st.randoms(use_true_random=False))
def test_the_order_of_the_facts_does_not_matter_and_every_file_is_ranked(
    files: list[File], history: dict[Path, Commits], order: Random
) -> None:
    shuffled = list(files)
    order.shuffle(shuffled)
    found = rank(files, history=history, now=NOW)
    assert found == rank(shuffled, history=history, now=NOW)
    assert {one.path for one in found} == {one.path for one in files}
    assert all(set(one.reasons) <= POINTS.keys() for one in found)
