"""One root's context while it lives: read in the background, fresh whenever it is used.

Guarantees
- Fresh: `fresh_for` takes in every open buffer, and what has been heard of the disk, before it
  names the context, and the engine has the newest layout in force before it is asked. Where that is
  too much to wait for, it names none.
- The editor is never kept waiting: files are read and laid out on worker threads; a new base is
  worked out beside the old one, and swapped in when nothing has changed meanwhile. After a change
  of very much at once, such as a switch of branches, completions use the open files until then.
- The user can end the first reading; the context is then gone, and comes back only with a change of
  the settings of section `qcn.context` or a new server.
- Idle means idle: no clock runs but while a burst of changes or the first reading lasts. A look at
  all files by content, for changes that nothing told of, is due with a completion, and seldom.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lsprotocol import types

from qcn_lsp.context.given import GivenFiles
from qcn_lsp.documents import Document
from qcn_lsp.engine.messages import (
    ContextLayout,
    ContextSegment,
    Dialect,
    EngineUnavailable,
    Superseded,
    UnknownContext,
)
from qcn_lsp.positions import plain
from qcn_lsp.uris import file_path

if TYPE_CHECKING:
    from qcn_indexer.layout import Layout
    from qcn_indexer.observe import Watcher
    from qcn_indexer.snapshot import Snapshot

    from qcn_lsp.context.repository import Repository, Texts
    from qcn_lsp.engine.dialects import OwnEngine
    from qcn_lsp.server import QcnServer
    from qcn_lsp.status import ProgressBar

logger = logging.getLogger(__name__)

LEAST_TOKENS = 512
"""A smaller budget holds no file worth the trouble."""
LEAST_LIMIT = 16_384
"""A model that takes less gets no context unless the user asks for one: so little holds hardly more
than what is open, and is laid out and read anew with every other change."""
RECONCILE_SECONDS = 1800.0
"""Between two looks at what all files hold; those at sizes and times come with the events."""
MOST_LOOKED_AT = 32
"""Paths on disk that a completion waits for to be looked at: a few milliseconds."""

NOTHING_KEPT = (
    "{problem}. All works without; the next engine reads the workspace anew. Set XDG_CACHE_HOME to "
    "a folder that you can write to and that has room, or qcn.context.diskMiB to 0."
)


class _Ended(Exception):  # noqa: N818 - an outcome, not an error
    """The work of a thread is of no use any more."""


async def _to_its_end(work: Callable[[], None]) -> None:
    """Run on a worker thread what must not be left half done, though nobody wants it any more."""
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class LiveContext:
    """One root's context while it lives."""

    def __init__(
        self, server: "QcnServer", root: Path, engine: "OwnEngine", dialect: Dialect
    ) -> None:
        from qcn_indexer.changes import Changes
        from qcn_indexer.git_folders import repository_name

        self.name = f"{uuid.uuid4().hex}:{root.name}"
        # What the model reads first: work trees of one repository share what they have in common.
        self.repo = repository_name(root)
        self.engine = engine
        self._dialect = dialect
        self.generation = 0
        self.ready = False
        self.stopped = False
        """Whether the user wanted none."""
        self._ended = False
        self._settled = asyncio.Event()  # laid out, or known that it will not be
        self._problem = ""
        self.sent: Layout | None = None
        self.fill: dict[str, int] = {}
        """`tokens` of at most `limit` that the engine was given last."""
        self._server = server
        self._root = root
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._turn = asyncio.Lock()  # who changes the repository
        self._looking = False  # whether a look at the disk is under way, to be taken in later
        self._unseen = False  # whether that is for changes that were heard of
        self._repository: Repository | None = None
        self._given = GivenFiles(root, dialect)
        self._budget = 0  # tokens
        self._watcher: Watcher | None = None
        self._bar: ProgressBar | None = None
        self._aside: set[asyncio.Task[None]] = set()  # kept from being collected
        self._reconciled, self._reconcile = time.monotonic(), False
        self.changes: Changes = Changes(root, self._wake)
        self._task = asyncio.create_task(self._keep())

    @property
    def failed(self) -> bool:
        """Whether there will be no context, for the reason that `described` gives."""
        return self._task.done()

    @property
    def settled(self) -> bool:
        """Whether it is laid out, or known that it will not be."""
        return self._settled.is_set()

    @property
    def shown_whole(self) -> frozenset[PurePosixPath]:
        """The files of which the layout shows all."""
        return frozenset() if self._repository is None else self._repository.shown_whole

    def end(self) -> None:
        """Stop."""
        self.ready, self._ended = False, True
        self._task.cancel()
        for task in self._aside:
            task.cancel()
        self._end_bar("Not read")
        self._stop_watching()

    def stop(self) -> None:
        """Read no further, for the user wants it so."""
        self.stopped = True
        self.ready, self._ended = False, True  # threads end soon
        self._problem = (
            f"{self._root.name} is not read: completions see the open files alone. To have it read "
            "after all, turn the setting qcn.context.repository off and on, or restart the server."
        )
        logger.info("%s", self._problem)
        self._settled.set()
        self._end_bar("Not read")
        self._stop_watching()
        self._server.status.tell([self._problem], types.MessageType.Info)
        self._do_aside(self._give_up())

    async def _give_up(self) -> None:
        """Have the engine read no more: nothing is a layout too, and takes the old one's place.

        What it has read stays with it; other windows may use it.
        """
        async with self._turn:  # a layout that is on its way arrives first
            self._task.cancel()
            try:
                await self.engine.put_context(
                    ContextLayout(self.name, self.repo, (), self._dialect)
                )
            except (EngineUnavailable, Superseded) as problem:
                logger.info("%s: the engine is not told to stop: %s", self._root.name, problem)

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            # Joining its threads may take a moment; nobody needs to wait for that.
            self._loop.run_in_executor(None, self._watcher.stop)
            self._watcher = None

    def _do_aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    def _end_bar(self, message: str) -> None:
        if self._bar is not None:
            self._bar.end(message)

    async def fresh_for(self, document: Document | None) -> str | None:
        """Take in the buffers but `document`, and changes on disk, and give the engine what is new.

        None where more has changed on disk than a completion can wait for.
        """
        repository = self._repository
        assert repository is not None
        buffers = self._buffers()
        current = None if document is None else self._path_of(document)
        self._watch_what_is_there()
        async with self._turn:
            if not self.ready:  # no more
                return None
            if not await self._catch_up(repository):
                return None
            await _to_its_end(lambda: repository.show(buffers, current))
            if time.monotonic() - self._reconciled > RECONCILE_SECONDS:
                self._reconcile = True
            if repository.compaction_due or self._reconcile:
                self._woken.set()
            await self._send(repository)
        return self.name

    async def _catch_up(self, repository: "Repository") -> bool:
        """Take in the few changes that were heard of; False where they are not few, or looked at.

        Called by who has the turn.
        """
        if self._looking:
            return not (self._unseen or self.changes.waiting)
        if not self.changes.waiting:
            return True
        if self.changes.waiting > MOST_LOOKED_AT:
            return False
        await _to_its_end(lambda: repository.take_in(repository.look(self.changes.take())))
        return not self._is_outdated(repository)

    def _is_outdated(self, repository: "Repository") -> bool:
        """Whether too much has changed at once; the context is not used then until it is anew."""
        if repository.outdated:
            self.ready = False
            self._settled.clear()
            self._woken.set()
        return repository.outdated

    async def described(self) -> dict[str, Any]:
        """Return the engine's view of the context, why each part is in it, and what is not."""
        await self._settled.wait()
        repository = self._repository
        if repository is None or repository.outdated or self.stopped:
            raise EngineUnavailable(self._problem)
        async with self._turn:
            await self._send(repository)
            layout, reasons = repository.layout.segments, repository.reasons
            why = [{"kind": one.kind, "reasons": reasons(one)} for one in layout]
            paths = [one.path for one in layout]
            edited = await asyncio.to_thread(lambda: [*map(repository.edited_at, paths)])
            left_out = [(str(path), reason) for path, reason in repository.left_out]
            try:
                view = await self.engine.describe_context(self.name)
            except UnknownContext:  # purged, or started anew, since it was given it
                self.sent = None
                await self._send(repository)
                view = await self.engine.describe_context(self.name)
        segments = [
            said | kind_and_reasons | {"edited": when}
            for said, kind_and_reasons, when in zip(view["segments"], why, edited, strict=True)
        ]
        ours = {"budget": self._budget, "segments": segments, "left_out": left_out}
        return {"root": str(self._root), **view, **ours}

    async def _keep(self) -> None:
        try:
            await self._read()
            self._settled.set()
            while True:
                await self._until_work()
                await self._take_in()
        except _Ended:
            return
        except (EngineUnavailable, Superseded) as problem:
            self._problem = f"{self._root} has no context: {problem}"
            logger.info("%s", self._problem)
        except Exception as error:  # a mistake of ours: completions go on without the context
            self._problem = f"the context of {self._root} failed ({error!r}); see the log"
            logger.exception("%s: the repository context failed", self._root.name)
        self.ready = False
        self._settled.set()
        self._end_bar("Not read")
        self._stop_watching()

    async def _read(self) -> None:
        from qcn_lsp.context.repository import Repository

        limit = await self.engine.context_limit()
        wanted = self._server.settings_in(self._root).context.tokens
        if not wanted and limit < LEAST_LIMIT:
            raise EngineUnavailable(
                f"the model takes {limit:,} tokens of one, less than is worth it; set "
                "qcn.context.tokens (of commands: --tokens) to have one all the same"
            )
        budget = min(wanted or limit, limit) // self._roots()
        if budget < LEAST_TOKENS:
            raise EngineUnavailable(f"{budget} tokens are too few for one")
        self._budget = budget
        self._bar = self._server.status.progress_bar(f"Reading {self._root.name}", self.stop)
        repository = Repository(self._root, count=self._count, budget=budget)
        await self._watch()  # before the first look, or what changes during it is never heard of
        await asyncio.to_thread(repository.read, self._buffers(), self._report)
        await asyncio.to_thread(lambda: repository.judge_given(self._given.paths()))
        self._repository = repository
        async with self._turn:
            await self._send(repository)
            self.ready = not self._ended
        logger.info("%s: laid out for the model", self._root.name)
        self._do_aside(self._follow_reading())

    def _report(self, stage: str) -> None:
        """Show how far the layout is, for worker threads, which end here once nobody waits."""
        if self._ended:
            raise _Ended
        if self._bar is not None:
            self._loop.call_soon_threadsafe(self._bar.show, 0, stage)

    async def _follow_reading(self) -> None:
        """Show how far the engine has read, and tell of what it cannot keep of that."""
        from qcn_lsp.context.progress import show_reading

        try:
            if self._bar is not None:
                await show_reading(self.engine, self.name, self._bar)
            problem = await self.engine.disk_problem()
        except EngineUnavailable as unknown:
            logger.info("%s: how far it is read is not known: %s", self._root.name, unknown)
            self._end_bar("Not read")
            return
        self._end_bar("Read")
        if problem is not None:
            self._server.status.tell(
                [NOTHING_KEPT.format(problem=problem[:1].upper() + problem[1:])]
            )

    def _roots(self) -> int:
        """How many workspace folders are read, which share what fits."""
        server = self._server
        read = [one for one in server.workspace_roots if server.settings_in(one).context.repository]
        return max(1, len(read))

    async def _watch(self) -> None:
        """Have the system tell of changes, where the client does not."""
        if self._server.client_watches_files:
            return
        from qcn_indexer.observe import Watcher

        def say(message: str) -> None:
            self._loop.call_soon_threadsafe(
                self._server.status.tell, [message], types.MessageType.Info
            )

        def watch() -> None:
            self._watcher = watcher = Watcher(self._root, self.changes, say)
            if self._ended:  # meanwhile, when there was nothing yet to stop
                watcher.stop()

        await asyncio.to_thread(watch)

    def _watch_what_is_there(self) -> None:
        """Look at everything, and watch it, where another folder has taken the root's place."""
        if self._watcher is None or not self._watcher.lost:
            return
        logger.info("%s is another folder now: it is looked at and watched anew", self._root.name)
        self._stop_watching()

        async def anew() -> None:
            await self._watch()  # before the look, as at first
            self.changes.add_everything(time.monotonic(), overflowed=True)

        self.changes.add_everything(time.monotonic(), overflowed=True)  # nothing old is used
        self._do_aside(anew())

    async def _until_work(self) -> None:
        """Return when a burst of events is over, a new base is due, or a look at everything."""
        assert self._repository is not None
        while not (self._repository.compaction_due or self._reconcile):
            self._woken.clear()  # before looking: what comes after that wakes us
            pause = self.changes.delay(time.monotonic())
            if pause == 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)

    async def _take_in(self) -> None:
        repository, buffers = self._repository, self._buffers()
        assert repository is not None
        async with self._turn:  # a completion waits for a look at a few changes
            if self._reconcile or not await self._catch_up(repository):
                self._looking = self._unseen = True  # and does without a longer one
        seen = await asyncio.to_thread(self._look, repository) if self._looking else None
        async with self._turn:
            if seen is not None:
                await asyncio.to_thread(repository.take_in, seen)
                self._looking = False
            self._is_outdated(repository)
            layout = repository.layout
            if not repository.compaction_due:
                await self._send_if_possible(repository)
                return
        anew = await asyncio.to_thread(repository.compacted, buffers)
        async with self._turn:
            repository.swap(anew, layout)
            await self._send_if_possible(repository)
            self.ready = not (self._ended or repository.outdated)
            self._settled.set()

    def _look(self, repository: "Repository") -> "Snapshot":
        """Look at what may have changed, or seldom at all there is; on a worker thread."""
        from qcn_indexer.changes import EVERYTHING

        by_content = self._reconcile or self.changes.overflowed
        self._reconcile = self.changes.overflowed = False  # before the places are taken
        places = self.changes.take()
        self._unseen = bool(places)
        if not by_content:
            return repository.look(places)
        self._reconciled = time.monotonic()
        return repository.look(EVERYTHING, by_content=True)

    async def _send_if_possible(self, repository: "Repository") -> None:
        """As `_send`; an engine that has left meanwhile is told when it is back."""
        try:
            await self._send(repository)
        except (EngineUnavailable, Superseded) as problem:
            self.sent = None
            logger.info("%s: the engine is not told of a change: %s", self._root.name, problem)

    async def _send(self, repository: "Repository") -> None:
        """Give the engine the layout, if it has another; called by who has the turn."""
        if repository.purge:
            repository.purge, self.sent = False, None
            try:
                await self.engine.delete_context(self.name, self.repo)
            except BaseException:
                repository.purge = True
                raise
            await asyncio.to_thread(self._given.forget)
        layout = repository.layout
        if layout == self.sent:
            return
        await self._note(layout)
        self.generation += 1
        tokens = await self.engine.put_context(self._message(repository))
        self.sent, self.fill = layout, {"tokens": tokens, "limit": self._budget}

    async def _note(self, layout: "Layout") -> None:
        """Note whose text the engine is about to be given, where it may keep what it reads."""
        sent = () if self.sent is None else self.sent.segments
        new = {one.path for one in layout.segments} - {one.path for one in sent}
        if new and self._server.settings.context.disk_mib != 0:
            await asyncio.to_thread(self._given.add, new)

    def _message(self, repository: "Repository") -> ContextLayout:
        segments = tuple(
            ContextSegment(
                segment.hash,
                str(segment.path),
                segment.text,
                segment.zone,
                segment.hot,
                superseded,
            )
            for segment, superseded in zip(
                repository.layout.segments, repository.superseded, strict=True
            )
        )
        return ContextLayout(self.name, self.repo, segments, self._dialect)

    def _count(self, text: str) -> int:
        """The engine's count of tokens, for worker threads, which end here once nobody waits."""
        if self._ended:
            raise _Ended
        counting = asyncio.run_coroutine_threadsafe(self.engine.count_tokens(text), self._loop)
        return counting.result()

    def _buffers(self) -> "Texts":
        """The open buffers below the root, as the model reads them."""
        opened = self._server.documents.open_documents()
        paths = ((self._path_of(document), document) for document in opened)
        return {path: plain(document.text) for path, document in paths if path is not None}

    def _path_of(self, document: Document) -> PurePosixPath | None:
        path = file_path(document.uri)
        if path is None or not path.is_relative_to(self._root):
            return None
        return PurePosixPath(path.relative_to(self._root).as_posix())

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._woken.set)
