"""What a workspace folder holds, and how that differs from what it held."""

import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexer.tree_support import own_git_home, write
from qcn_indexer import snapshot
from qcn_indexer.changes import Changes
from qcn_indexer.snapshot import (
    EMPTY,
    NOTICED_EVERY,
    Difference,
    Snapshot,
    difference,
    look_again,
)
from qcn_indexer.walk import TOP
from sampling import examples

LONG_AGO = 1_700_000_000_000_000_000


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own_git_home(tmp_path / "home", monkeypatch)
    root = tmp_path / "root"
    root.mkdir()
    return root


def settle(root: Path) -> None:
    """Let all files have been written long ago."""
    for file in root.rglob("*"):
        os.utime(file, ns=(LONG_AGO, LONG_AGO))


def test_each_kind_of_change_is_told(root: Path) -> None:
    write(root, {"same.py": "1", "edited.py": "2", "gone.py": "3", "old/moved.py": "4"})
    before = look_again(root, EMPTY)
    assert difference(EMPTY, before).added == ("edited.py", "gone.py", "old/moved.py", "same.py")
    write(root, {"edited.py": "2 + 2", "new.py": "5", "new/moved.py": "4"})
    shutil.rmtree(root / "old")
    (root / "gone.py").unlink()
    assert difference(before, look_again(root, before)) == Difference(
        added=("new.py",),
        changed=("edited.py",),
        removed=("gone.py",),
        renamed=(("old/moved.py", "new/moved.py"),),
    )


def test_the_paths_of_a_difference_are_in_order(root: Path) -> None:
    names = [f"{name}.py" for name in "hcfagebd"]
    write(root, {f"{kind}/{name}": name for kind in ("gone", "edited") for name in names})
    before = look_again(root, EMPTY)
    shutil.rmtree(root / "gone")
    write(
        root, {f"{kind}/{name}": f"{kind} {name}" for kind in ("edited", "new") for name in names}
    )
    found = difference(before, look_again(root, before))
    assert found.files == len(found.paths) == 3 * len(names)
    for kind, told in (("new", found.added), ("edited", found.changed), ("gone", found.removed)):
        assert told == tuple(f"{kind}/{name}" for name in sorted(names))


def test_a_file_that_was_touched_or_saved_as_it_was_has_not_changed(root: Path) -> None:
    write(root, {"a.py": "x = 1\n", "b.py": "y = 1\n"})
    before = look_again(root, EMPTY)
    os.utime(root / "a.py", ns=(LONG_AGO, LONG_AGO))
    (root / "b.py").write_bytes(b"y = 1\r\n")
    assert difference(before, look_again(root, before)) == Difference()


def test_of_files_with_one_text_the_one_of_the_same_name_has_moved(root: Path) -> None:
    write(root, {"p/__init__.py": "x", "p/b.py": "x"})
    before = look_again(root, EMPTY)
    write(root, {"q/a.py": "x", "q/b.py": "x"})
    shutil.rmtree(root / "p")
    assert difference(before, look_again(root, before)).renamed == (
        ("p/__init__.py", "q/a.py"),
        ("p/b.py", "q/b.py"),
    )


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({".gitignore": "a.py\n"}, "a.py"),
        ({"a.py": "key = 'AKIA" + "Z7QWERTYPASDFGHJ'\n"}, "a.py"),
        ({"a.py": "\0"}, "a.py"),
        ({"lib/CACHEDIR.TAG": "x"}, "lib/b.py"),
    ],
)
def test_what_is_no_longer_fit_is_removed(root: Path, change: dict[str, str], path: str) -> None:
    write(root, {"a.py": "x = 1\n", "lib/b.py": "y = 1\n"})
    before = look_again(root, EMPTY)
    write(root, change)
    assert difference(before, look_again(root, before)).removed == (path,)


def test_an_unfit_file_keeps_its_reason_and_is_not_read_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, {"a.py": "\0", "b.py": "x"})
    settle(root)
    before = look_again(root, EMPTY)
    assert before["a.py"].unfit == "it is binary"
    monkeypatch.setattr(snapshot, "read_text", lambda path: pytest.fail(f"{path} was read"))
    assert look_again(root, before) == before


def test_a_file_just_written_is_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time can stay the same while it changes, so its time says nothing yet."""
    monkeypatch.setattr(snapshot, "COARSE_NS", 3600 * 10**9)  # we may be slow to look
    write(root, {"a.py": "x = 1"})
    before = look_again(root, EMPTY)
    time = (root / "a.py").stat().st_mtime_ns
    (root / "a.py").write_text("x = 2")
    os.utime(root / "a.py", ns=(time, time))
    assert difference(before, look_again(root, before)).changed == ("a.py",)


def test_a_change_that_hides_from_the_clock_is_found_by_content(root: Path) -> None:
    write(root, {"a.py": "x = 1"})
    settle(root)
    before = look_again(root, EMPTY)
    (root / "a.py").write_text("x = 2")
    settle(root)
    assert look_again(root, before) == before
    assert difference(before, look_again(root, before, by_content=True)).changed == ("a.py",)


def test_only_the_places_are_looked_at(root: Path) -> None:
    write(root, {"a/x.py": "1", "a/y.py": "1", "ab.py": "1", "b/z.py": "1"})
    before = look_again(root, EMPTY)
    write(root, {"a/x.py": "2", "ab.py": "2", "b/z.py": "2"})
    (root / "a" / "y.py").unlink()
    after = look_again(root, before, [PurePosixPath("a")])
    found = difference(before, after)
    assert (found.changed, found.removed) == (("a/x.py",), ("a/y.py",))
    assert after["ab.py"] == before["ab.py"]
    assert look_again(root, after, [PurePosixPath("ab.py"), PurePosixPath("b")]) == look_again(
        root, after
    )


def test_folders_that_are_as_they_were_are_shared_not_copied(root: Path) -> None:
    write(root, {f"{folder}/{file}.py": "1" for folder in "abc" for file in "xyz"})
    before = look_again(root, EMPTY)
    write(root, {"a/x.py": "2"})
    for places in ([PurePosixPath("a/x.py")], [TOP]):
        after = look_again(root, before, places)
        shared = [name for name in before.folders if after.folders[name] is before.folders[name]]
        assert shared == ["b/", "c/"]


def test_how_many_files_there_are_is_told_on_the_way(root: Path) -> None:
    write(root, {f"{file}.py": "1" for file in range(2 * NOTICED_EVERY + 1)})
    told: list[int] = []
    look_again(root, EMPTY, noticed=told.append)
    assert told == [NOTICED_EVERY, 2 * NOTICED_EVERY]


def test_a_place_in_a_folder_that_is_now_left_out_takes_the_folder_with_it(root: Path) -> None:
    write(root, {"a/b/x.py": "1", "a/y.py": "1"})
    before = look_again(root, EMPTY)
    write(root, {".gitignore": "/a\n"})
    assert look_again(root, before, [PurePosixPath("a/b/x.py")]) == {}


names = st.sampled_from(["a", "b", "c.py", "d.py", ".gitignore", "CACHEDIR.TAG"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
texts = st.sampled_from(["1", "2", "c.py\n", "/b\n", "\0", ""])


def edit(root: Path, path: str, text: str | None) -> list[Path]:
    """Write the text, or remove what is there, and return what the system would tell of."""
    file = root / path
    in_the_way = [above for above in file.parents if above.is_file()]
    for above in in_the_way:
        above.unlink()
    if file.is_dir():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    if text is not None:
        write(root, {path: text})
    return [*in_the_way, file]


@pytest.mark.long
@examples(sample=60, full=1000)
@given(
    first=st.dictionaries(paths, texts, max_size=6),
    edits=st.lists(st.tuples(paths, texts | st.none()), max_size=6),
)
def test_looking_where_something_happened_gives_what_a_look_at_everything_gives(
    first: dict[str, str], edits: list[tuple[str, str | None]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for path, content in first.items():
            edit(root, path, content)
        before = look_again(root, EMPTY)
        changes = Changes(root)
        for path, text in edits:
            for event in edit(root, path, text):
                changes.add(event, 0.0)
        after = look_again(root, before, changes.take())
        everything = look_again(root, EMPTY)
        assert digests(after) == digests(everything)
        assert_difference_leads(before, after)


def digests(seen: Snapshot) -> dict[str, bytes]:
    return {path: version.digest for path, version in seen.items()}


def assert_difference_leads(before: Snapshot, after: Snapshot) -> None:
    """Replaying the difference on the old files gives the new ones."""
    old = {path: digest for path, digest in digests(before).items() if digest}
    new = {path: digest for path, digest in digests(after).items() if digest}
    told = difference(before, after)
    for path in told.removed:
        del old[path]
    for source, target in told.renamed:
        old[target] = old.pop(source)
    for path in told.changed:
        assert old[path] != new[path]
    old |= {path: new[path] for path in (*told.added, *told.changed)}
    assert old == new
