"""What was read of contexts, kept on disk: a restart goes on where it stopped.

Purpose. The state cache in memory (`state_cache.py`) ends with the process and drops what does not
fit. Here the checkpoints of contexts, and the keys and values between them, lie in the user's cache
directory: read back after a restart, after an eviction, after a return to an old branch. Only texts
of contexts come here, never a request's own.

Guarantees
- Exact: a file is used only for the very tokens, weights, tokenizer, number types and numerics that
  it was written with (`fingerprint_of`), and only when its digest is right. One that is cut short,
  altered, swapped or of another version is removed and its text read again.
- Never in the way: files are written by a thread of their own from tensors that nobody changes, and
  read by another, while the model's thread goes on. What waits to be written is only the newest of
  each context.
- Private: folders 0700, files 0600. `forget` returns when nothing of a repository is left, whatever
  was being written; so does `purge`, of every model.
- Bounded: after each batch the least recently used is removed until all fits `max_bytes`, and what
  nobody has used for 30 days with it.
- Dispensable: where the folder cannot be made, written to or listed, the cache is off from then on,
  says so once, and the rest works as it does without.

Several engines. Files appear whole, under names that say what is in them, and may vanish at any
time. So all may read and remove at once; to write in a repository's folder an engine holds the lock
there while it does, and one that finds it taken tries again later. A lock ends with its process.

No file is synced: after a power cut one may be short or empty, which its digest tells.
"""

import hashlib
import logging
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import qcn_kernels
import torch
from filelock import FileLock, Timeout

from qcn_inference import disk_files
from qcn_inference.disk_entry import DamagedError, EntryFormat, keys_of
from qcn_inference.disk_files import LOCK, NO_PARENT, Entry
from qcn_inference.kept import KvBlock
from qcn_inference.model import Model
from qcn_inference.state_cache import Stretch
from qcn_inference.tokenizer import Tokenizer

log = logging.getLogger(__name__)

T = TypeVar("T")

WINDOW_SECONDS = 1.0
"""How long a layout waits for a newer one of its context before it is written."""
LOCK_SECONDS = 1.0
"""How long to wait for another engine that is writing in a folder, before other work is done."""
LOOK_AGAIN_SECONDS = 0.005
"""How long the model's thread waits for the reader at a time: a completion may be waiting."""


def fingerprint_of(model: Model, tokenizer: Tokenizer) -> bytes:
    """An identity of all that a state's bits depend on but its tokens.

    Weights and precision, the tokenizer, torch and what the processor offers it, the number of
    threads (which decides how sums are split), what keys and values are kept in, our own code, and
    where our kernels run, Triton's version and the chip: any of it may change a rounding.
    """
    digest = hashlib.sha256(model.fingerprint.encode())
    digest.update(tokenizer.fingerprint)
    processor = (torch.get_num_threads(), _processor())
    numerics = (torch.__version__, *processor, model.kv_cache_dtype, *_kernels(model))
    digest.update(repr(numerics).encode())
    for package in (Path(__file__).parent, *map(Path, qcn_kernels.__path__)):
        for source in sorted(package.rglob("*.py")):
            digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.digest()


def _kernels(model: Model) -> tuple[str, ...]:
    """What the bits of our kernels depend on, where the model runs by them."""
    if not model.runs_kernels:
        return ()
    import triton  # there is none for macOS and Windows

    chip = "interpreted"
    if model.device.type == "cuda":
        capability = torch.cuda.get_device_capability(model.device)
        chip = f"{torch.cuda.get_device_name(model.device)} {capability} CUDA {torch.version.cuda}"
    return (triton.__version__, chip)


def _processor() -> str:
    """What torch chooses its kernels by: instructions, sizes of caches."""
    if hasattr(torch.cpu, "get_capabilities"):  # newer versions do
        return repr(sorted(torch.cpu.get_capabilities().items()))
    return torch.backends.cpu.get_cpu_capability()


def in_background(work: Callable[[], T]) -> Generator[None, None, T]:
    """The steps of a job that waits for `work`, which runs on a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="disk reader", daemon=True).start()
    while not wait([future], LOOK_AGAIN_SECONDS).done:
        yield
    return future.result()


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The newest of a context that is still to be written."""

    due: float  # time.monotonic()
    repo: str
    stretches: tuple[Stretch, ...]
    ready: Callable[[], None]  # waits until they can be read


class DiskCache:
    """At most `max_bytes` of states under `root`; those of one model are written and read."""

    def __init__(self, root: Path, format: EntryFormat, max_bytes: int | None) -> None:  # noqa: A002
        """Look at what is there; `max_bytes` None takes what the machine has room for.

        Errors are logged, never raised: the cache is off then.
        """
        self.root = root
        self.nbytes = 0
        self.max_bytes = 0
        self.problem: str | None = None  # why it is off
        self._format = format
        self._changed = threading.Condition()
        self._waiting: dict[str, _Waiting] = {}  # by context
        self._writing = True
        self._hurry = False
        self._closing = False
        self._times_forgotten: dict[str, int] = defaultdict(int)
        self._thread = threading.Thread(
            target=self._work, args=[max_bytes], name="disk writer", daemon=True
        )
        self._thread.start()

    @property
    def on(self) -> bool:
        """Whether anything is written and read."""
        return self.problem is None

    # On the model's thread.

    def keep(
        self,
        context: str,
        repo: str,
        stretches: Sequence[Stretch],
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Write, soon, what is not there yet of a context's text, which begins with these.

        `ready` is called on the writer's thread first: it waits until they can be read.
        """
        with self._changed:
            if self.on and not self._closing:
                older = self._waiting.get(context)
                due = time.monotonic() + WINDOW_SECONDS if older is None else older.due
                self._waiting[context] = _Waiting(due, repo, tuple(stretches), ready)
                self._changed.notify_all()

    # On any thread.

    def find(self, repo: str, pieces: Sequence[bytes], beyond: int) -> list[tuple[int, int, Entry]]:
        """The entries that hold a text, given as the ids of its blocks, behind its first `beyond`.

        In order; each with the number of its first block (the first one's is `beyond` or less) and
        the number behind its last.
        """
        keys = keys_of(self._format.fingerprint, pieces)
        try:
            chain = disk_files.chain_to(disk_files.entries_of(self._folder(repo)), keys)
        except OSError as error:
            self._turn_off(error)
            return []
        return [link for link in chain if link[1] > beyond]

    def read(self, entry: Entry, pieces: Sequence[bytes]) -> Stretch | None:
        """What an entry holds: these blocks. One that is not what it should be is removed."""
        try:
            with entry.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                return self._format.read(
                    file, size, key=entry.key, parent=entry.parent, pieces=pieces
                )
        except FileNotFoundError:  # removed by another engine, or forgotten
            return None
        except (DamagedError, OSError) as error:
            problem = error.strerror if isinstance(error, OSError) else error
            log.warning("%s %s: it is removed, its text read again", entry.path, problem)
            with suppress(OSError):
                entry.path.unlink()
            return None

    def forget(self, repo: str) -> int:
        """Remove all that any model has kept of repositories of this name; the number of files.

        Raises OSError where something could not be removed.
        """
        with self._changed:
            self._times_forgotten[repo] += 1
            for context in [name for name, kept in self._waiting.items() if kept.repo == repo]:
                del self._waiting[context]
        return disk_files.purge(self.root, repo)

    def flush(self, seconds: float) -> bool:
        """Write what waits; whether that was done in time."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            idle = self._changed.wait_for(lambda: not (self._waiting or self._writing), seconds)
            self._hurry = False
        return idle

    def close(self, seconds: float) -> None:
        """Write what waits, if it takes no longer than this, and no more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("left with something not on disk: it took longer than %.0f s", seconds)

    def check_integrity(self) -> None:
        """Raise `AssertionError` where more is kept than may be, or what nobody else may see.

        Tests call it, when nothing waits.
        """
        if not self.on:
            return
        held = sum(entry.nbytes for entry in disk_files.all_entries(self.root))
        if held > self.max_bytes:
            raise AssertionError(f"{held} bytes on disk, {self.max_bytes} allowed")
        for path in (self.root, *self.root.rglob("*")):
            if path.stat().st_mode & 0o077:
                raise AssertionError(f"{path} is open to others")

    def _folder(self, repo: str) -> Path:
        return self.root / self._format.fingerprint.hex()[:32] / disk_files.name_of(repo)

    def _turn_off(self, error: Exception) -> None:
        """Say once why nothing is kept on disk any more."""
        with self._changed:
            if self.problem is None:
                problem = str(error) if isinstance(error, OSError) else type(error).__name__
                self.problem = f"contexts are not kept on disk in {self.root}: {problem}"
                log.warning("%s", self.problem)
            self._waiting.clear()

    # On the writer's thread.

    def _work(self, max_bytes: int | None) -> None:
        try:
            disk_files.make_private(self.root)
            if max_bytes is None:
                max_bytes = disk_files.default_budget(self.root)
            self.max_bytes = max_bytes
            self.nbytes = disk_files.sweep(self.root, max_bytes)
            if max_bytes < (least := self._format.nbytes(())):
                raise OSError(
                    f"at most {max_bytes >> 10:,} KiB may be taken there (unless it is set, a "
                    f"tenth of what is free), and a text takes more than {least >> 10:,} KiB"
                )
            while (waiting := self._next()) is not None:
                self._write(*waiting)
        except Exception as error:  # whatever it is, the engine goes on without
            self._turn_off(error)
        with self._changed:
            self._writing = False
            self._changed.notify_all()

    def _next(self) -> tuple[str, _Waiting, int] | None:
        """Wait for something to write; None when there will be nothing more.

        With it comes how often its repository had been forgotten by then.
        """
        with self._changed:
            self._writing = False
            self._changed.notify_all()
            while True:
                if self._waiting:
                    context = min(self._waiting, key=lambda name: self._waiting[name].due)
                    left = self._waiting[context].due - time.monotonic()
                    if left <= 0 or self._hurry or self._closing:
                        self._writing = True
                        waiting = self._waiting.pop(context)
                        return context, waiting, self._times_forgotten[waiting.repo]
                    self._changed.wait(left)
                elif self._closing:
                    return None
                else:
                    self._changed.wait()

    def _write(self, context: str, waiting: _Waiting, times_forgotten: int) -> None:
        """Write a text's beginning into its repository's folder, unless that was forgotten."""

        def wanted() -> bool:
            return self._times_forgotten[waiting.repo] == times_forgotten

        folder = self._folder(waiting.repo)
        waiting.ready()
        try:
            disk_files.make_private(folder.parent)
            disk_files.make_private(folder)
            with FileLock(folder / LOCK, timeout=LOCK_SECONDS, mode=0o600):
                self._write_chain(folder, waiting.stretches, wanted)
        except Timeout:  # another engine is writing there
            with self._changed:
                if wanted() and not self._closing:
                    due = time.monotonic() + WINDOW_SECONDS
                    self._waiting.setdefault(context, replace(waiting, due=due))
        except FileNotFoundError:  # forgotten meanwhile, by this engine or another
            pass
        self.nbytes = disk_files.sweep(self.root, self.max_bytes)

    def _write_chain(
        self, folder: Path, stretches: Sequence[Stretch], wanted: Callable[[], bool]
    ) -> None:
        """Write the stretches of a text that are missing, and note that the others are used."""
        entries = {(entry.key, entry.parent): entry for entry in disk_files.entries_of(folder)}
        pieces = [piece for stretch in stretches for piece, _ in stretch.blocks]
        keys = iter(keys_of(self._format.fingerprint, pieces))
        parents, blocks, total = [NO_PARENT], list[tuple[bytes, KvBlock]](), 0
        for stretch in stretches:
            key = [next(keys) for _ in stretch.blocks][-1]
            blocks += stretch.blocks
            there = [entries[key, parent] for parent in parents if (key, parent) in entries]
            total += there[0].nbytes if there else self._format.nbytes(blocks)
            if total > self.max_bytes:  # what does not fit would only be removed again
                return
            if there:
                os.utime(there[0].path)
            else:
                write = partial(
                    self._format.write,
                    key=key,
                    parent=parents[-1],
                    blocks=blocks,
                    checkpoint=stretch.checkpoint,
                )
                self._put(folder / disk_files.file_name(key, parents[-1]), write, wanted)
            parents.append(key)
            blocks = []

    def _put(
        self, path: Path, write: Callable[[BinaryIO], None], wanted: Callable[[], bool]
    ) -> None:
        """Put a file in its place, whole.

        Raises:
            FileNotFoundError: it is not wanted any more, or its folder is gone.
            OSError: it cannot be written; nothing is left of it.
        """
        # mkstemp makes the file 0600.
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=disk_files.HALF_WRITTEN)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
            with self._changed:
                if not wanted():
                    raise FileNotFoundError(path)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
