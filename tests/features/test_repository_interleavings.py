"""A workspace that goes on while its layout is worked on: looks, buffers and bases in any order.

`tests/engine/test_exact.py` has the same from end to end, one thing after the other. Here a base is
worked out and put in force much later, a buffer closes meanwhile, files come back ignored.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from layout_reader import read
from qcn_indexer.changes import EVERYTHING
from qcn_indexer.layout import Layout
from sampling import examples

from qcn_lsp.context.repository import Compacted, Repository

GITHUB_TOKEN = "ghp_" + "a1B2c3D4e5" * 3 + "f6G7h8"  # in one piece it would be found here
SECRET = f"key = '{GITHUB_TOKEN}'\n"
NAMES = ["a.py", "b.py", "lib/c.py", "lib/d.py", "lib/sub/e.py", "f.md"]
PATHS = st.sampled_from([PurePosixPath(name) for name in NAMES])


def source(lines: int, kind: int) -> str:
    return "".join(f"v{kind}_{number} = {number}\n" for number in range(lines))


TEXTS = st.builds(source, st.sampled_from([1, 3, 12, 40]), st.integers(0, 3)) | st.sampled_from(
    ["", SECRET]
)


class Workspace(RuleBasedStateMachine):
    """Files, ignore rules and buffers change; the repository hears of it when it does."""

    @initialize(
        budget=st.sampled_from([900, 3000, 8000]),
        buffers=st.dictionaries(PATHS, TEXTS, min_size=1, max_size=3),
    )
    def begin(self, budget: int, buffers: dict[PurePosixPath, str]) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="qcn-")) / "shop"
        subprocess.run(["git", "init", "-q", str(self.root)], check=True)
        self.buffers = buffers
        self.ignoring: dict[str, set[PurePosixPath]] = {
            ".gitignore": set(),
            ".git/info/exclude": set(),
        }
        self.heard: set[PurePosixPath] = set()
        self.base: tuple[Compacted, Layout] | None = None
        for name in NAMES[:5]:
            self.write(PurePosixPath(name), source(12, 0))
        self.repository = Repository(self.root, count=lambda text: len(text) // 4, budget=budget)
        self.repository.read({})

    # --- On disk and in the editor --------------------------------------------------------------

    @rule(path=PATHS, text=TEXTS)
    def write(self, path: PurePosixPath, text: str) -> None:
        file = self.root / path
        file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        self.heard.add(path)

    @rule(path=PATHS)
    def delete(self, path: PurePosixPath) -> None:
        (self.root / path).unlink(missing_ok=True)
        self.heard.add(path)

    @rule()
    def delete_a_folder(self) -> None:
        shutil.rmtree(self.root / "lib", ignore_errors=True)
        self.heard.add(PurePosixPath("lib"))

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: PurePosixPath, new: PurePosixPath) -> None:
        if (self.root / old).is_file() and old != new:
            self.write(new, (self.root / old).read_text())
            self.delete(old)

    @rule(path=PATHS)
    def link(self, path: PurePosixPath) -> None:
        self.write(path, "x")
        (self.root / path).unlink()
        (self.root / path).symlink_to(os.devnull)

    @rule(where=st.sampled_from([".gitignore", ".git/info/exclude"]), path=PATHS)
    def ignore_or_not(self, where: str, path: PurePosixPath) -> None:
        self.ignoring[where] ^= {path}
        (self.root / where).write_text("".join(f"/{one}\n" for one in self.ignoring[where]))
        self.heard |= EVERYTHING

    @rule(path=PATHS, text=TEXTS)
    def edit(self, path: PurePosixPath, text: str) -> None:
        self.buffers[path] = text

    @precondition(lambda self: self.buffers)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        del self.buffers[data.draw(st.sampled_from(sorted(self.buffers)))]

    # --- What the server does with it -----------------------------------------------------------

    @rule()
    def take_in(self) -> None:
        before = {segment.path for segment in self.repository.layout.segments}
        self.repository.take_in(self.repository.look(self.heard))
        self.heard = set()
        if any(self.is_forbidden(path) for path in before):
            assert self.repository.purge

    @rule(current=PATHS)
    def complete(self, current: PurePosixPath) -> None:
        self.take_in()
        self.repository.show(self.buffers, current)
        for segment in self.repository.layout.segments:
            assert not self.is_forbidden(segment.path)
            assert GITHUB_TOKEN not in segment.text
        for path, (kind, text) in read(self.repository.layout.segments).items():
            if kind == "file" and path != current:
                assert text == self.now(path)
        self.repository.purge = False  # the engine is told

    @rule()
    def work_out_a_base(self) -> None:
        self.base = self.repository.compacted(dict(self.buffers)), self.repository.layout

    @precondition(lambda self: self.base)
    @rule()
    def put_it_in_force(self) -> None:
        assert self.base is not None
        self.repository.swap(*self.base)
        self.base = None

    def is_forbidden(self, path: PurePosixPath) -> bool:
        """Whether there is, by this name, what must not be shown."""
        file, ignored = self.root / path, set().union(*self.ignoring.values())
        if path in ignored or file.is_symlink():
            return os.path.lexists(file)
        return path not in self.buffers and file.is_file() and GITHUB_TOKEN in file.read_text()

    def now(self, path: PurePosixPath) -> str | None:
        if path in self.buffers:
            return self.buffers[path]
        return (self.root / path).read_text() if (self.root / path).is_file() else None

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root.parent)


@pytest.mark.long
def test_whatever_happens_meanwhile_the_layout_is_current_and_private() -> None:
    run_state_machine_as_test(Workspace, settings=examples(sample=10, full=100))


# --- What it has found --------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sixteen files of 600 tokens, of which 12,500 tokens' worth of a budget hold not all."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for number in range(16):
        (tmp_path / f"{number}.py").write_text("# some line\n" * 300)
    return tmp_path


@pytest.fixture
def repository(root: Path) -> Repository:
    repository = Repository(root, count=lambda text: len(text) // 6, budget=12_500)
    repository.read({})
    return repository


def shown(repository: Repository) -> set[str]:
    return {str(segment.path) for segment in repository.layout.segments}


def look(repository: Repository) -> None:
    repository.take_in(repository.look(EVERYTHING))


@pytest.mark.parametrize("how", ["ignored", "deleted", "secret"])
def test_what_may_not_be_shown_any_more_when_a_base_is_ready_is_not_shown(
    root: Path, repository: Repository, how: str
) -> None:
    """The layout before it did not show the file."""
    left_out = {f"{number}.py" for number in range(16)} - shown(repository)
    assert left_out
    for name in sorted(shown(repository))[:8]:
        (root / name).unlink()
    look(repository)
    before = repository.layout
    anew = repository.compacted({})
    for name in left_out:
        if how == "ignored":
            (root / ".git" / "info" / "exclude").write_text("\n".join(left_out))
        elif how == "deleted":
            (root / name).unlink()
        else:
            (root / name).write_text(SECRET)
    look(repository)
    assert not repository.swap(anew, before)
    assert not shown(repository) & left_out
    assert repository.swap(repository.compacted({}), repository.layout)
    assert not shown(repository) & left_out


def test_a_buffer_that_closes_while_a_base_is_worked_out_gives_way_to_the_disk(
    root: Path, repository: Repository
) -> None:
    path = PurePosixPath("0.py")
    for number in range(1, 12):  # so that there is room for it
        (root / f"{number}.py").unlink()
    look(repository)
    anew, before = repository.compacted({path: "unsaved = 1\n"}), repository.layout
    assert repository.swap(anew, before)
    repository.show({})
    assert read(repository.layout.segments)[path] == ("file", (root / path).read_text())


@pytest.mark.parametrize("how", ["it stays away", "it comes back"])
def test_a_file_that_was_gone_before_it_became_ignored_is_forgotten(
    root: Path, repository: Repository, how: str
) -> None:
    name = sorted(shown(repository))[0]
    text = (root / name).read_text()
    (root / name).unlink()
    look(repository)
    (root / ".git" / "info" / "exclude").write_text(name)
    if how == "it comes back":
        (root / name).write_text(text)
    look(repository)
    assert name not in shown(repository)
    assert repository.purge
