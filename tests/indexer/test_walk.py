"""Going through a workspace folder: what is found, and why the rest is not."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexer.tree_support import git, own_git_home, write
from qcn_indexer.walk import MAX_BYTES, TOP, Found, Skipped, walk
from sampling import examples


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_git_home(tmp_path / "home", monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "work space"
    root.mkdir()
    return root


def found(root: Path, at: PurePosixPath = TOP) -> list[str]:
    return [str(item.path) for item in walk(root, [at]) if isinstance(item, Found)]


def skipped(root: Path, at: PurePosixPath = TOP) -> dict[str, str]:
    return {str(item.path): item.reason for item in walk(root, [at]) if isinstance(item, Skipped)}


def test_each_folder_gives_its_files_and_then_its_folders(root: Path) -> None:
    write(root, dict.fromkeys(["b.py", "a/z.py", "a.py", "a/b/c.py", "Z.py", "c/a.py"], "x"))
    assert found(root) == ["Z.py", "a.py", "b.py", "a/z.py", "a/b/c.py", "c/a.py"]


def test_a_file_comes_with_its_size_and_time(root: Path) -> None:
    write(root, {"a.py": "x = 1\n"})
    os.utime(root / "a.py", ns=(5, 1_700_000_000_123_456_789))
    assert list(walk(root)) == [Found(PurePosixPath("a.py"), 6, 1_700_000_000_123_456_789)]


REASONS = [
    ("node_modules/x/a.js", "node_modules", "packages of npm"),
    ("src/vendor/a.go", "src/vendor", "vendored"),
    ("third_party/a.c", "third_party", "vendored"),
    (".venv/lib/a.py", ".venv", "virtual environment"),
    ("dist/a.js", "dist", "built files"),
    ("x.egg-info/PKG-INFO", "x.egg-info", "packages of Python"),
    ("a.min.js", "a.min.js", "minified"),
    ("a_pb2.py", "a_pb2.py", "generated"),
    ("app/Cargo.lock", "app/Cargo.lock", "lock file"),
    ("logo.PNG", "logo.PNG", "binary, by its name (.png)"),
    ("model.safetensors", "model.safetensors", "binary"),
    (".env.local", ".env.local", "a usual name for secrets"),
    ("deploy/.ssh/config", "deploy/.ssh", "a usual folder for secrets"),
    ("old.log", "old.log", "ignored by .gitignore, line 1"),
    ("gen/deep/a.py", "gen", "ignored by .gitignore, line 2"),
]


@pytest.mark.parametrize(("file", "named", "why"), REASONS, ids=[file for file, _, _ in REASONS])
def test_what_is_left_out_is_named_once_with_its_reason(
    root: Path, file: str, named: str, why: str
) -> None:
    write(root, {".gitignore": "*.log\ngen/\n", "a.py": "x", file: "x"})
    assert found(root) == [".gitignore", "a.py"]
    assert list(skipped(root)) == [named]
    assert why in skipped(root)[named]


@pytest.mark.parametrize(
    "name", ["vendor.py", "build/a.py", "dist.go", "minjs.js", "lock.c", "png"]
)
def test_a_source_file_of_such_a_name_is_found(root: Path, name: str) -> None:
    write(root, {name: "x"})
    assert found(root) == [name]


@pytest.mark.parametrize("marker", ["pyvenv.cfg", "CACHEDIR.TAG"])
def test_a_folder_that_says_what_it_is_is_believed(root: Path, marker: str) -> None:
    write(root, {f"env/{marker}": "x", "env/lib/a.py": "x", "a.py": "x"})
    assert found(root) == ["a.py"]
    assert marker in skipped(root)["env"]
    assert marker in skipped(root, PurePosixPath("env/lib/a.py"))["env"]


def test_size_is_judged_without_opening(root: Path) -> None:
    write(root, {"big.c": b"x" * (MAX_BYTES + 1), "most.c": b"x" * MAX_BYTES, "empty.py": ""})
    assert found(root) == ["most.c"]
    assert skipped(root) == {"big.c": "it is longer than 256 KiB", "empty.py": "it is empty"}


def test_a_fifo_and_a_socket_are_never_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "fifo")
    monkeypatch.chdir(root)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")
        assert skipped(root) == dict.fromkeys(
            ["fifo", "sock"], "it is a device, a FIFO or a socket"
        )


def test_no_link_is_followed_and_each_says_where_it_leads(root: Path, tmp_path: Path) -> None:
    write(tmp_path, {"outside/a.py": "x"})
    write(root, {"src/a.py": "x"})
    links = {
        "away": "../outside", "away.py": str(tmp_path / "outside" / "a.py"), "again": "src",
        "again.py": "src/a.py", "up": ".", "src/top": "..", "nothing": "nowhere", "one": "two",
        "two": "one",
    }  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    assert found(root) == ["src/a.py"]
    leaves, circle = "leaves the workspace folder", "to nothing, or in a circle"
    reasons = {
        "away": leaves, "away.py": leaves, "again": "a second name of src",
        "again.py": "a second name of src/a.py", "up": "a folder around it",
        "src/top": "a folder around it", "nothing": circle, "one": circle, "two": circle,
    }  # fmt: skip
    said = skipped(root)
    assert said.keys() == reasons.keys()
    assert [name for name, why in reasons.items() if not said[name].endswith(why)] == []


def test_a_root_that_is_a_link_is_walked(root: Path, tmp_path: Path) -> None:
    write(root, {"a.py": "x"})
    (tmp_path / "link").symlink_to(root)
    assert found(tmp_path / "link") == ["a.py"]


def test_a_folder_that_cannot_be_read_does_not_end_the_walk(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, {"a/x.py": "x", "b/x.py": "x"})
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if folder.name == "a":  # the tests may run as root, whom no mode keeps out
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert next(iter(walk(root))) == Skipped(
        PurePosixPath("a"), "it cannot be read: Permission denied", unread=True
    )
    assert found(root) == ["b/x.py"]


def test_a_file_that_cannot_be_looked_at_does_not_end_the_walk(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, {"a.py": "x", "b.py": "x"})
    scandir = os.scandir

    class Refused:
        name = "a.py"

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            raise PermissionError(13, "Permission denied")

    def refuse(folder: Path) -> object:
        with scandir(folder) as listing:
            return contextlib.nullcontext(
                [*(one for one in listing if one.name != "a.py"), Refused()]
            )

    monkeypatch.setattr(os, "scandir", refuse)
    assert next(iter(walk(root))) == Skipped(
        PurePosixPath("a.py"), "it cannot be read: Permission denied", unread=True
    )
    assert found(root) == ["b.py"]


def test_what_vanishes_during_the_walk_is_not_named(root: Path) -> None:
    write(root, {"a.py": "x", "b.py": "x", "c/d.py": "x"})
    steps = walk(root)
    assert next(steps).path.name == "a.py"
    (root / "b.py").unlink()
    (root / "c" / "d.py").unlink()
    (root / "c").rmdir()
    assert list(steps) == []


def test_a_root_that_is_gone_holds_nothing(root: Path) -> None:
    assert list(walk(root / "gone")) == []


def test_a_name_that_is_no_utf8_is_left_out(root: Path) -> None:
    (root / os.fsdecode(b"caf\xe9.py")).write_text("x")
    assert list(skipped(root).values()) == ["its name is not UTF-8"]


def test_gits_own_is_never_entered_and_repositories_inside_are(root: Path) -> None:
    git(root, "init", "--quiet")
    git(root, "init", "--quiet", "lib")
    write(root, {"a.py": "x", "lib/b.py": "x", "lib/.gitignore": "*.o\n", "lib/c.o": "x"})
    write(root, {"sub/.git": "gitdir: ../.git/modules/sub\n", "sub/d.py": "x"})
    assert found(root) == ["a.py", "lib/.gitignore", "lib/b.py", "sub/d.py"]
    assert [path for path, why in skipped(root).items() if why == "git's own (.git)"] == [
        ".git", "lib/.git", "sub/.git",
    ]  # fmt: skip


@pytest.fixture
def repository(root: Path) -> Path:
    """One with a commit, so that there can be more work trees of it."""
    git(root, "init", "--quiet")
    write(root, {"a.py": "x"})
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "a")
    return root


def test_a_further_work_tree_inside_of_the_first_is_left_out(repository: Path) -> None:
    """All files would stand there once more, in another version."""
    for name in ("trees/one", ".worktrees/two"):
        git(repository, "worktree", "add", "--quiet", str(repository / name))
    assert found(repository) == ["a.py"]
    why = "it is another work tree of the repository around it"
    assert skipped(repository) | {"trees/one": why, ".worktrees/two": why} == skipped(repository)
    assert skipped(repository, PurePosixPath("trees/one/a.py")) == {"trees/one": why}
    # But not where the user has opened it, or the folder that holds it.
    assert found(repository / "trees" / "one") == ["a.py"]
    assert found(repository / "trees") == ["one/a.py"]


def test_work_trees_around_a_bare_repository_are_found(repository: Path, tmp_path: Path) -> None:
    around = tmp_path / "around"
    git(repository, "clone", "--quiet", "--bare", ".", str(around / ".bare"))
    write(around, {".git": "gitdir: ./.bare\n"})
    git(around, "worktree", "add", "--quiet", "fix")
    assert "fix/a.py" in found(around)


def test_an_ignored_root_is_left_out_as_a_whole(root: Path) -> None:
    git(root, "init", "--quiet")
    write(root, {".gitignore": "scratch\n", "scratch/a.py": "x"})
    assert list(walk(root / "scratch")) == [Skipped(TOP, "ignored by .gitignore, line 1")]


def test_one_place_is_walked_as_the_whole_would_walk_it(root: Path) -> None:
    write(
        root,
        {".gitignore": "*.log\n/gen\n", "src/a.py": "x", "src/b/c.py": "x", "src/b/d.log": "x"},
    )
    write(root, {"src/.gitignore": "secret.py\n", "src/b/secret.py": "x", "gen/deep/a.py": "x"})
    assert found(root, PurePosixPath("src/b")) == ["src/b/c.py"]
    assert list(skipped(root, PurePosixPath("src/b"))) == ["src/b/d.log", "src/b/secret.py"]
    assert found(root, PurePosixPath("src/a.py")) == ["src/a.py"]
    assert list(walk(root, [PurePosixPath("src/gone")])) == []
    assert skipped(root, PurePosixPath("gen/deep/a.py")) == {"gen": "ignored by .gitignore, line 2"}


PEAK_OF_A_WALK = """
import sys, tracemalloc
from pathlib import Path
from qcn_indexer.walk import walk

def peak(root):
    tracemalloc.start()
    for _ in walk(Path(root)):
        pass
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most

# The least of three: now and then one of them makes Python's table of interned names grow.
print(*(min(peak(root) for _ in range(3)) for root in sys.argv[1:]))
"""


def test_the_memory_of_a_walk_does_not_grow_with_the_tree(tmp_path: Path) -> None:
    """Counted, not timed: the most that is held at once, for trees of 10 and of 60 folders.

    In a process of its own: the count is of all threads.
    """
    for folders in (10, 60):
        for folder in range(folders):
            write(tmp_path / str(folders), {f"{folder}/{file}.py": "x" for file in range(40)})
    run = [sys.executable, "-c", PEAK_OF_A_WALK, str(tmp_path / "10"), str(tmp_path / "60")]
    small, large = map(int, subprocess.check_output(run).split())
    assert large < small + 50 * 2_000  # a folder's place in the queue, not its 40 files


names = st.sampled_from(["a", "b", "a.py", "x.log", "vendor", ".env", "z.min.js", "é"])
trees = st.lists(st.lists(names, min_size=1, max_size=4).map("/".join), max_size=12)


@pytest.mark.long
@examples(sample=100, full=1000)
@given(tree=trees, rules=st.lists(st.sampled_from(["a", "*.log", "!x.log", "b/", "/a/b"])))
def test_every_file_is_found_or_lies_in_what_is_skipped_and_git_agrees(
    tree: list[str], rules: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        git(root, "init", "--quiet")
        write(root, {".gitignore": "\n".join(["# rules", *rules, ""])})
        for name in tree:
            file = root / name
            if not any(above.is_file() for above in file.parents) and not file.exists():
                write(root, {name: "x"})
        items = list(walk(root))
        assert items == list(walk(root)), "the order is the same each time"
        taken = {item.path for item in items if isinstance(item, Found)}
        left_out = {item.path: item.reason for item in items if isinstance(item, Skipped)}
        for file in (path for path in root.rglob("*") if path.is_file()):
            path = PurePosixPath(file.relative_to(root))
            holders = [part for part in (path, *path.parents) if part in left_out]
            assert len(holders) == (0 if path in taken else 1)
        listed = git(root, "ls-files", "-z", "--others", "--exclude-standard").split(b"\0")
        kept = {PurePosixPath(os.fsdecode(name)) for name in listed if name}
        assert taken <= kept
        for path in kept - taken:
            (why,) = [left_out[part] for part in (path, *path.parents) if part in left_out]
            assert not why.startswith("ignored")
