"""What was read of contexts outlives the process: exact, private, bounded, and dispensable."""

import errno
import multiprocessing
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from unittest import mock

import pytest
import qcn_kernels
import torch
from disk_support import (
    DEADLINE_SECONDS,
    REPO,
    files_of,
    flush,
    leave,
    logits_behind,
    new_session,
    refresh,
    refresh_for_ever,
)
from engine_support import finish
from filelock import FileLock, Timeout
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from qcn_inference import disk_files
from qcn_inference.contexts import Context
from qcn_inference.disk_cache import DiskCache, fingerprint_of
from qcn_inference.disk_entry import EntryFormat
from qcn_inference.generate import Loaded
from qcn_inference.grid import BLOCK
from qcn_inference.model import Model
from qcn_inference.service.contexts import MOST_UNREAD, bring, readable
from qcn_inference.state_cache import SPACING
from sampling import count, examples
from torch import Tensor

TAIL = [23, 24, 25]
TEXT = [20] * BLOCK + [21] * (BLOCK // 2)
KEEP = [BLOCK]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "contexts"


@pytest.fixture
def opened(loaded: Loaded, root: Path) -> Iterator[Callable[..., Loaded]]:
    """Starts sessions on one cache folder; each is left at the end, its books in order."""
    sessions: list[Loaded] = []

    def begin(**how: Any) -> Loaded:
        sessions.append(new_session(loaded.model, loaded.tokenizer, how.pop("root", root), **how))
        return sessions[-1]

    yield begin
    for session in sessions:
        leave(session)


def disk_of(session: Loaded) -> DiskCache:
    assert session.disk is not None
    return session.disk


def from_nothing(loaded: Loaded, ids: list[int]) -> Tensor:
    """The logits of a completion behind a text that was never read before."""
    state = loaded.model.new_state()
    text = [*ids, *TAIL]
    for start, end in loaded.cache.skip(text).blocks:
        logits = loaded.model.prefill(text[start:end], state)
    return logits


# --- Durable -----------------------------------------------------------------------------------


def test_a_restart_reads_nothing_again_and_answers_the_same(
    opened: Callable[..., Loaded], loaded: Loaded
) -> None:
    first = opened()
    assert refresh(first, TEXT, KEEP).computed == len(TEXT)
    leave(first)
    again = opened()
    refreshed = refresh(again, TEXT, KEEP)
    assert (refreshed.reused, refreshed.restored, refreshed.computed) == (len(TEXT), len(TEXT), 0)
    assert again.cache.checkpoints_of(TEXT) == [BLOCK, len(TEXT)]
    assert torch.equal(logits_behind(again, TEXT, TAIL), from_nothing(loaded, TEXT))
    refreshed = refresh(again, TEXT, KEEP)
    assert (refreshed.reused, refreshed.restored) == (len(TEXT), 0)


def test_after_a_restart_a_change_costs_what_it_costs_without(
    opened: Callable[..., Loaded], loaded: Loaded
) -> None:
    first = opened()
    refresh(first, TEXT, KEEP)
    leave(first)
    changed = [*TEXT[:BLOCK], 22, 22]
    refreshed = refresh(opened(), changed, ())
    assert (refreshed.restored, refreshed.computed) == (BLOCK, 2)


def test_a_long_first_read_is_kept_as_it_goes_on(opened: Callable[..., Loaded]) -> None:
    """Killed in the middle, it goes on from there."""
    first, text = opened(), [20] * (2 * SPACING)
    steps = first.refresh(text, [len(text)], context="c", repo=REPO)
    while first.unread(text) == len(text):
        next(steps)
    next(steps)
    flush(first)
    again = opened()
    assert refresh(again, text, ()).restored == SPACING


def test_returning_to_a_branch_that_left_memory_is_a_restore(
    opened: Callable[..., Loaded], loaded: Loaded
) -> None:
    session = opened()
    branch = [*TEXT[:BLOCK], *[22] * 40]
    refresh(session, TEXT, KEEP)
    refresh(session, branch, KEEP, name="other")
    flush(session)
    session.cache.clear()
    refreshed = refresh(session, branch, KEEP)
    assert (refreshed.restored, refreshed.computed) == (len(branch), 0)
    refreshed = refresh(session, TEXT, KEEP)
    assert (refreshed.restored, refreshed.computed) == (len(TEXT) - BLOCK, 0)
    assert torch.equal(logits_behind(session, TEXT, TAIL), from_nothing(loaded, TEXT))


def test_what_memory_has_no_room_for_is_not_brought(opened: Callable[..., Loaded]) -> None:
    first = opened()
    refresh(first, TEXT, KEEP)
    room = first.cache.nbytes - 1
    leave(first)
    assert refresh(opened(memory=room), TEXT, KEEP).restored == BLOCK
    assert refresh(opened(memory=0), TEXT, KEEP).restored == 0


def test_a_completion_brings_its_context_back(
    opened: Callable[..., Loaded], loaded: Loaded
) -> None:
    """One that left memory is not read again, nor left out, when it can be restored."""
    session, text = opened(), [20] * (MOST_UNREAD + BLOCK)
    context = Context("c", REPO, (), loaded.cache.read(text)._tokens)
    refresh(session, text, ())
    flush(session)
    session.cache.clear()
    assert readable(session, context) is None
    finish(bring(session, context))
    assert readable(session, context) is context
    assert session.unread(text) == 0


def test_the_model_goes_on_while_an_entry_is_read(
    opened: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened()
    refresh(first, TEXT, KEEP)
    leave(first)
    may_read, read = threading.Event(), EntryFormat.read

    def slow(*given: Any, **named: Any) -> Any:
        may_read.wait()
        return read(*given, **named)

    monkeypatch.setattr(EntryFormat, "read", slow)
    steps = opened().refresh(TEXT, KEEP, context="c", repo=REPO)
    for _ in range(20):
        next(steps)  # returns, though nothing can be read
    may_read.set()
    assert finish(steps).restored == len(TEXT)


def test_nothing_is_written_before_it_can_be_read(
    opened: Callable[..., Loaded], root: Path
) -> None:
    """What a GPU has computed is still on its way to the host."""
    session, found = opened(), list[dict[str, bytes]]()
    refresh(session, TEXT, KEEP, repo="read before")
    flush(session)
    before = files_of(root)
    stretches = session.cache.stretches(TEXT)
    disk_of(session).keep("c", REPO, stretches, lambda: found.append(files_of(root)))
    flush(session)
    assert found == [before]
    assert len(files_of(root)) == 2 * len(before)


class Sessions(RuleBasedStateMachine):
    """Layouts, restarts, evictions, damage, a second engine: what is answered is always exact."""

    loaded: Loaded  # set by the test
    folder: Path
    from_nothing: Callable[[tuple[int, ...]], Tensor]

    def __init__(self) -> None:
        super().__init__()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.text: list[int] = []
        self.session = self.begin()
        self.other = self.begin()

    def begin(self) -> Loaded:
        return new_session(self.loaded.model, self.loaded.tokenizer, self.folder, memory=600_000)

    @initialize(length=st.sampled_from([1, 70, BLOCK, 700]))
    def first(self, length: int) -> None:
        self.read(0, length, 20)

    @rule(
        front=st.sampled_from([0, 1, 70, BLOCK, 600]),
        length=st.sampled_from([0, 1, 30, BLOCK]),
        token=st.integers(20, 22),
    )
    def read(self, front: int, length: int, token: int) -> None:
        opener = self.loaded.tokenizer.control_id("<|file_sep|>")
        self.text = [*self.text[:front], opener, *[token] * length]
        refresh(self.session, self.text, [front, front // 2])
        self.compare(self.session)

    @rule()
    def restart(self) -> None:
        leave(self.session)
        self.session = self.begin()
        assert refresh(self.session, self.text, ()).computed == 0
        self.compare(self.session)

    @rule()
    def evict(self) -> None:
        flush(self.session)
        self.session.cache.clear()
        refresh(self.session, self.text, ())
        self.compare(self.session)

    @rule(number=st.integers(0, 9), at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def damage(self, number: int, at: float, bit: int) -> None:
        flush(self.session)
        files = sorted(self.folder.rglob("*.state"))
        if files:
            flip(files[number % len(files)], at, bit)
        self.session.cache.clear()
        refresh(self.session, self.text, ())
        self.compare(self.session)

    @rule()
    def forget(self) -> None:
        flush(self.other)  # which knows nothing of this, and would write what it has read
        self.session.cache.forget(self.text)
        disk_of(self.session).forget(REPO)
        assert files_of(self.folder) == {}
        assert refresh(self.session, self.text, ()).reused == 0
        self.compare(self.session)

    @rule()
    def ask_the_other_engine(self) -> None:
        refresh(self.other, self.text, ())
        self.compare(self.other)

    def compare(self, session: Loaded) -> None:
        session.cache.check_integrity()
        expected = self.from_nothing(tuple(self.text))
        assert torch.equal(logits_behind(session, self.text, TAIL), expected)

    def teardown(self) -> None:
        leave(self.session)
        leave(self.other)


@pytest.mark.long
def test_whatever_happens_answers_are_those_of_a_fresh_engine(loaded: Loaded, root: Path) -> None:
    class Bound(Sessions):
        pass

    Bound.loaded, Bound.folder = loaded, root
    # Most texts are looked at again and again.
    Bound.from_nothing = staticmethod(cache(lambda text: from_nothing(loaded, list(text))))
    run_state_machine_as_test(Bound, settings=examples(sample=6, full=50))


# --- Damage ------------------------------------------------------------------------------------


def flip(path: Path, at: float, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1 << bit
    path.write_bytes(data)


def damages(files: list[Path], draw: random.Random) -> Iterator[Callable[[], object]]:
    """Every file in turn: cut at 0, 1, half and its last byte, lengthened, flipped, swapped."""
    for path in files:
        size = path.stat().st_size
        for length in (0, 1, size // 2, size - 1):
            yield partial(os.truncate, path, length)
        yield partial(path.write_bytes, path.read_bytes() + b"\0")
        for at in (0.0, *(draw.random() for _ in range(count(sample=6, full=100)))):
            yield partial(flip, path, at, draw.randrange(8))
        for other in files:
            if other != path:
                yield partial(path.write_bytes, other.read_bytes())


@pytest.mark.long
def test_a_damaged_file_is_removed_and_its_text_read_again(
    opened: Callable[..., Loaded], loaded: Loaded, root: Path, tmp_path: Path
) -> None:
    first = opened()
    refresh(first, TEXT, [BLOCK // 2, BLOCK])
    branch = [*TEXT[:BLOCK], *[22] * 40]
    refresh(first, branch, KEEP, name="other")
    leave(first)
    whole, expected = files_of(root), from_nothing(loaded, TEXT)
    assert len(whole) == 3
    pristine = shutil.copytree(root, tmp_path / "pristine")
    files = [root / name for name in sorted(whole)]
    for damage in damages(files, random.Random(7)):
        shutil.rmtree(root)
        shutil.copytree(pristine, root)
        damage()
        session = new_session(loaded.model, loaded.tokenizer, root)
        refresh(session, TEXT, KEEP)
        assert torch.equal(logits_behind(session, TEXT, TAIL), expected)
        refresh(session, branch, KEEP, name="other")
        leave(session)
        assert files_of(root) == whole  # written anew, to the byte


def test_a_file_of_another_model_or_version_is_not_read(
    opened: Callable[..., Loaded], loaded: Loaded, root: Path
) -> None:
    other = opened(salt=b"another model")
    refresh(other, TEXT, KEEP)
    leave(other)
    theirs = files_of(root)
    session = opened()
    assert refresh(session, TEXT, KEEP).restored == 0
    leave(session)
    ours = {name: data for name, data in files_of(root).items() if name not in theirs}
    assert theirs.items() <= files_of(root).items()  # left alone
    assert len(ours) == len(theirs)
    for mine, other_file in zip(sorted(ours), sorted(theirs), strict=True):
        (root / mine).write_bytes(theirs[other_file])
    assert refresh(opened(), TEXT, KEEP).restored == 0


def of_other_weights(loaded: Loaded, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(loaded.model, "fingerprint", "of other weights")


def of_another_tokenizer(loaded: Loaded, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(loaded.tokenizer, "fingerprint", b"of another tokenizer")


def by_more_threads(loaded: Loaded, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(torch, "get_num_threads", lambda: 99)


def by_another_torch(loaded: Loaded, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(torch, "__version__", "0.0")


def on_another_processor(loaded: Loaded, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": "?"}, raising=False)


def by_other_code(loaded: Loaded, patch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "sigmoid.py").write_text("# another one")
    patch.setattr(qcn_kernels, "__path__", [*qcn_kernels.__path__, str(folder)])


def of_other_keys(loaded: Loaded, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(loaded.model, "kv_cache_dtype", "fp8")


def by_triton(loaded: Loaded, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.7"))
    patch.setattr(Model, "runs_kernels", True)


def test_the_fingerprint_tells_what_may_change_a_bit(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = fingerprint_of(loaded.model, loaded.tokenizer)
    assert own == fingerprint_of(loaded.model, loaded.tokenizer)
    for otherwise in (
        of_other_weights,
        of_another_tokenizer,
        by_more_threads,
        by_another_torch,
        on_another_processor,
        by_other_code,
        of_other_keys,
        by_triton,
    ):
        with monkeypatch.context() as patch:
            otherwise(loaded, patch, tmp_path)
            assert fingerprint_of(loaded.model, loaded.tokenizer) != own, otherwise.__name__


@pytest.mark.long
def test_killed_while_it_writes_it_leaves_nothing_wrong(
    loaded: Loaded, model_folder: Path, root: Path
) -> None:
    """At random moments of a process that refreshes, writes and forgets without a pause."""
    draw = random.Random(11)
    layouts = [TEXT[: BLOCK + extra] for extra in (9, 80, 200)]
    expected = [from_nothing(loaded, layout) for layout in layouts]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qcn_inference.checkpoint", "qcn_inference.generate"])
    for _ in range(count(sample=8, full=100)):
        begun = context.Event()
        given = (model_folder, root, layouts, begun)
        victim = context.Process(target=refresh_for_ever, args=given, daemon=True)
        victim.start()
        assert begun.wait(DEADLINE_SECONDS)
        time.sleep(draw.uniform(0, 0.2))  # the moment is to be a random one
        assert victim.is_alive()
        victim.kill()
        victim.join()
        session = new_session(loaded.model, loaded.tokenizer, root)
        for number, layout in enumerate(layouts):
            refresh(session, layout, [len(layout) // 2], name=str(number))
            assert torch.equal(logits_behind(session, layout, TAIL), expected[number])
        leave(session)
        assert not list(root.rglob("*.tmp"))


def test_what_a_killed_writer_left_half_written_goes_wherever_it_lies(
    opened: Callable[..., Loaded], root: Path
) -> None:
    """Also in the folder of a repository that nobody opens any more, of a model that is gone."""
    left = root / "model" / "repository" / "left.tmp"
    alive = root / "model" / "another" / "alive.tmp"
    for file in (left, alive):
        disk_files.make_private(file.parent)
        file.touch(0o600)
    with FileLock(alive.parent / ".lock", mode=0o600):
        leave(opened())
        assert not left.parent.exists()
        assert alive.exists(), "its writer is at work"
    leave(opened())
    assert list(root.iterdir()) == []


# --- Several engines ---------------------------------------------------------------------------


def test_who_finds_the_folder_locked_writes_when_it_is_free(
    opened: Callable[..., Loaded], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcn_inference.disk_cache.LOCK_SECONDS", 0.01)
    monkeypatch.setattr("qcn_inference.disk_cache.WINDOW_SECONDS", 0.01)
    first = opened()
    refresh(first, TEXT, KEEP)
    flush(first)
    (lock,) = root.rglob(disk_files.LOCK)
    before = files_of(root)
    with FileLock(lock):
        refresh(first, [*TEXT, 22], ())
        assert not disk_of(first).flush(0.2)
        assert refresh(opened(), TEXT, KEEP).computed == 0  # reading needs no lock
        assert files_of(root) == before
    flush(first)
    assert len(files_of(root)) == len(before) + 1


def test_sessions_side_by_side_use_what_the_other_has_written(
    opened: Callable[..., Loaded], root: Path
) -> None:
    one, two = opened(), opened()
    refresh(one, TEXT, KEEP)
    flush(one)
    assert refresh(two, TEXT, KEEP).computed == 0
    flush(two)
    assert len(files_of(root)) == 2


# --- Bounded -----------------------------------------------------------------------------------


def sizes(root: Path) -> int:
    return sum(map(len, files_of(root).values()))


def age(root: Path, seconds: float) -> None:
    """Make all entries look as if last used so long ago."""
    for path in root.rglob("*.state"):
        used = path.stat().st_mtime - seconds
        os.utime(path, (used, used))


def test_what_was_used_least_recently_goes_first_and_never_what_others_continue(
    opened: Callable[..., Loaded], root: Path
) -> None:
    session = opened()
    refresh(session, TEXT, KEEP)
    flush(session)
    room = sizes(root)
    session = opened(disk=2 * room)
    for token in range(30, 36):
        age(root, 10)
        refresh(session, [token, *TEXT], KEEP, name=str(token))
        flush(session)
        assert sizes(root) <= 2 * room
    assert disk_of(session).nbytes == sizes(root)
    again = opened(disk=2 * room)
    assert refresh(again, [35, *TEXT], KEEP).computed == 0
    assert refresh(again, TEXT, KEEP).computed == len(TEXT)
    for name in files_of(root):
        parent = name.rsplit("-", 1)[1].removesuffix(".state")
        assert parent == disk_files.NO_PARENT or list(root.rglob(f"{parent}-*"))


def test_an_entry_that_another_continues_stays(opened: Callable[..., Loaded], root: Path) -> None:
    session = opened()
    refresh(session, TEXT, KEEP)
    leave(session)
    (first,) = root.rglob(f"*-{disk_files.NO_PARENT}.state")
    os.utime(first, (time.time() - 60, time.time() - 60))
    left = disk_files.sweep(root, sizes(root) - 1)
    assert list(root.rglob("*.state")) == [first]
    assert left == first.stat().st_size


def test_a_text_larger_than_the_budget_is_kept_as_far_as_it_fits(
    opened: Callable[..., Loaded], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened()
    refresh(session, TEXT, KEEP)
    flush(session)
    small = opened(disk=sizes(root) - 1, salt=b"another")
    writes = mock.Mock(wraps=disk_of(small)._put)
    monkeypatch.setattr(DiskCache, "_put", writes)
    refresh(small, TEXT, KEEP)
    leave(small)
    assert writes.call_count == 1  # nothing is written only to be removed
    assert refresh(opened(disk=sizes(root), salt=b"another"), TEXT, KEEP).restored == BLOCK


def test_where_not_even_the_shortest_text_fits_the_cache_is_off_and_says_why(
    opened: Callable[..., Loaded], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(root.parent)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: full)
    session = opened(disk=None)
    refresh(session, TEXT, KEEP)
    flush(session)
    assert not disk_of(session).on
    assert "at most 0 KiB may be taken there" in str(disk_of(session).problem)
    assert not files_of(root)


def test_what_nobody_has_used_for_a_month_goes(opened: Callable[..., Loaded], root: Path) -> None:
    for salt in (b"", b"another"):
        session = opened(salt=salt)
        refresh(session, TEXT, KEEP)
        flush(session)
    age(root, disk_files.RETENTION_SECONDS - 3600)
    session = opened()
    assert refresh(session, TEXT, KEEP).computed == 0  # is used, and stays
    leave(session)
    age(root, 7200)
    leave(opened())
    assert len(files_of(root)) == 2
    age(root, disk_files.RETENTION_SECONDS)
    leave(opened())
    assert list(root.iterdir()) == []


# --- Private -----------------------------------------------------------------------------------


def test_only_the_user_may_read_it_whatever_the_umask(
    opened: Callable[..., Loaded], tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        session = opened(root=tmp_path / "home" / ".cache" / "qcn" / "contexts")
        refresh(session, TEXT, KEEP)
        leave(session)
    finally:
        os.umask(before)
    found = list((tmp_path / "home").rglob("*"))
    assert sum(path.suffix == ".state" for path in found) == 2
    for path in found:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def test_a_folder_that_others_could_read_is_closed_to_them(
    opened: Callable[..., Loaded], root: Path
) -> None:
    root.mkdir()
    root.chmod(0o755)
    session = opened()
    refresh(session, TEXT, KEEP)
    leave(session)
    assert files_of(root)
    assert root.stat().st_mode & 0o777 == 0o700


def test_no_name_on_disk_tells_the_repositorys(opened: Callable[..., Loaded], root: Path) -> None:
    session = opened()
    refresh(session, TEXT, KEEP, repo="acquisition-of-acme")
    leave(session)
    assert files_of(root)
    assert not any("acme" in str(path) for path in root.rglob("*"))


def test_what_is_forgotten_is_gone_of_every_model_and_nothing_else_is(
    opened: Callable[..., Loaded], root: Path
) -> None:
    one, two = opened(), opened(salt=b"another model")
    for session in (one, two):
        refresh(session, TEXT, KEEP)
        refresh(session, [22, *TEXT], KEEP, repo="other", name="d")
        flush(session)
    assert disk_of(one).forget(REPO) == 4
    one.cache.clear()
    assert len(files_of(root)) == 4
    assert refresh(one, [22, *TEXT], KEEP, repo="other").computed == 0
    assert refresh(one, TEXT, KEEP).computed == len(TEXT)


def test_what_is_being_written_is_forgotten_too(
    opened: Callable[..., Loaded], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, may_write, write = threading.Event(), threading.Event(), EntryFormat.write

    def slow(self: EntryFormat, file: BinaryIO, **named: Any) -> None:
        write(self, file, **named)
        writing.set()
        may_write.wait()

    monkeypatch.setattr(EntryFormat, "write", slow)
    session = opened()
    refresh(session, TEXT, KEEP)
    assert writing.wait(DEADLINE_SECONDS)
    session.cache.forget(TEXT)
    disk_of(session).forget(REPO)
    assert not list(root.glob("*/*"))
    may_write.set()
    flush(session)
    assert files_of(root) == {}
    assert not list(root.rglob("*.tmp"))
    assert disk_of(session).on


def test_what_is_about_to_be_written_is_forgotten_too(
    opened: Callable[..., Loaded], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer has taken it up, and makes its folder after it was removed."""
    session = opened()
    flush(session)
    begun, may_begin, make_private = threading.Event(), threading.Event(), disk_files.make_private

    def slow(folder: Path) -> None:
        begun.set()
        may_begin.wait()
        make_private(folder)

    monkeypatch.setattr(disk_files, "make_private", slow)
    refresh(session, TEXT, KEEP)
    assert begun.wait(DEADLINE_SECONDS)
    session.cache.forget(TEXT)
    disk_of(session).forget(REPO)
    may_begin.set()
    flush(session)
    assert files_of(root) == {}


def test_what_waits_to_be_written_is_forgotten_too(
    opened: Callable[..., Loaded], root: Path
) -> None:
    session = opened()
    refresh(session, TEXT, KEEP)
    refresh(session, [22, *TEXT], KEEP, repo="other", name="d")
    disk_of(session).forget(REPO)
    flush(session)
    assert len(files_of(root)) == 2
    assert disk_of(session).forget("other") == 2


def test_what_waits_for_another_engine_to_be_written_is_forgotten_too(
    opened: Callable[..., Loaded], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcn_inference.disk_cache.WINDOW_SECONDS", 0.01)
    session = opened()
    flush(session)
    begun, is_over = threading.Event(), threading.Event()

    def taken(*given: Any, **named: Any) -> FileLock:
        begun.set()
        is_over.wait()
        raise Timeout("another engine is writing")

    with monkeypatch.context() as patch:
        patch.setattr("qcn_inference.disk_cache.FileLock", taken)
        refresh(session, TEXT, KEEP)
        assert begun.wait(DEADLINE_SECONDS)
        session.cache.forget(TEXT)
        disk_of(session).forget(REPO)
    is_over.set()
    flush(session)
    assert files_of(root) == {}


def test_what_is_being_restored_when_it_is_forgotten_does_not_come_back(
    opened: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened()
    refresh(first, TEXT, KEEP)
    leave(first)
    may_go_on, read = threading.Event(), EntryFormat.read

    def slow(*given: Any, **named: Any) -> Any:
        stretch = read(*given, **named)
        may_go_on.wait()
        return stretch

    monkeypatch.setattr(EntryFormat, "read", slow)
    session = opened()
    steps = session.restore(TEXT, REPO, 2**30)
    next(steps)
    session.cache.forget(TEXT)
    may_go_on.set()
    finish(steps)
    assert session.unread(TEXT) == len(TEXT)


# --- Dispensable -------------------------------------------------------------------------------


def test_a_full_disk_turns_it_off_with_one_message(
    opened: Callable[..., Loaded],
    loaded: Loaded,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write = EntryFormat.write

    def full(self: EntryFormat, file: BinaryIO, **named: Any) -> None:
        write(self, file, **named)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")

    session = opened()
    monkeypatch.setattr(EntryFormat, "write", full)
    for token in (20, 21):
        refresh(session, [*TEXT, token], KEEP)
        flush(session)
    assert not disk_of(session).on
    assert [record.message for record in caplog.records] == [disk_of(session).problem]
    assert "No space left on device" in caplog.text
    assert [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"] == []
    assert torch.equal(logits_behind(session, TEXT, TAIL), from_nothing(loaded, TEXT))


def test_a_folder_that_cannot_be_made_turns_it_off(
    opened: Callable[..., Loaded], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    session = opened(root=tmp_path / "file" / "contexts")
    refresh(session, TEXT, KEEP)
    flush(session)
    assert not disk_of(session).on
    assert len(caplog.records) == 1
    assert disk_of(session).forget(REPO) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_turns_it_off(opened: Callable[..., Loaded], root: Path) -> None:
    root.mkdir(mode=0o700)
    root.chmod(0o500)
    session = opened()
    refresh(session, TEXT, KEEP)
    flush(session)
    assert not disk_of(session).on


def test_a_folder_of_another_user_is_not_used(
    opened: Callable[..., Loaded], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: root.stat().st_uid + 1)
    session = opened()
    flush(session)
    assert "another user" in str(disk_of(session).problem)
