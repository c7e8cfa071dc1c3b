"""The contexts of all workspace roots: read in the background, fresh whenever one is used.

A root's context is begun with the first completion in it, once the engine is there. Until its base
is laid out, and wherever anything about it fails, completions use the open files alone: a context
is a help, never a condition.

Guarantees
- Fresh: `name_for` takes in every open buffer before it names the context, and the engine has the
  newest layout in force before it is asked. What changes on disk is taken in as it is heard of.
- The editor is never kept waiting: files are read and laid out on worker threads; a new base is
  worked out beside the old one, and swapped in when nothing has changed meanwhile.
- Roots do not mix: each has a context of its own, a fair share of the budget, and its open files.

Rejected: to name contexts by their folder, so that windows share them. Their unsaved buffers
differ. What the layouts have in common the engine shares anyway, by the tokens.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lsprotocol import types

from qcn_lsp.documents import Document
from qcn_lsp.engine.messages import ContextLayout, ContextSegment, EngineUnavailable, Superseded
from qcn_lsp.positions import plain
from qcn_lsp.uris import file_path

if TYPE_CHECKING:
    from qcn_indexer.layout import Layout
    from qcn_indexer.observe import Watcher

    from qcn_lsp.context.repository import Repository, Texts
    from qcn_lsp.engine.dialects import OwnEngine
    from qcn_lsp.server import QcnServer

logger = logging.getLogger(__name__)

LEAST_TOKENS = 512
"""A smaller budget holds no file worth the trouble."""
LEAST_LIMIT = 16_384
"""A model that takes less gets no context unless the user asks for one: so little holds hardly more
than what is open, and is laid out and read anew with every other change."""


class RepositoryContexts:
    """One context for each workspace root that completions were asked for in."""

    def __init__(self, server: "QcnServer") -> None:
        self._server = server
        self._live: dict[Path, _Live] = {}

    def state(self, root: Path) -> object | None:
        """What stands for the context's text as it is now; None where there is none yet."""
        live = self._live.get(root)
        return None if live is None or not live.ready else (live.name, live.generation)

    def begin(self, root: Path, engine: "OwnEngine") -> None:
        """Begin to read a root, unless that has been done."""
        live = self._live.get(root)
        if live is not None and live.engine is engine:
            return
        if live is None or live.failed:
            self._live[root] = _Live(self._server, root, engine)
        else:  # the engine was started anew, and knows nothing yet
            live.engine, live.sent = engine, None

    async def name_for(self, root: Path, document: Document) -> str | None:
        """Return the context to complete `document` behind, brought up to date; or None."""
        live = self._live.get(root)
        if live is None or not live.ready:
            return None
        try:
            return await live.fresh_for(document)
        except (EngineUnavailable, Superseded) as problem:
            logger.info("completing without the repository: %s", problem)
            return None

    def shown_whole(self, root: Path) -> frozenset[PurePosixPath]:
        """Return the files of which the model reads all, as they are now."""
        live = self._live.get(root)
        return live.shown_whole if live is not None else frozenset()

    async def describe(self, root: Path, engine: "OwnEngine") -> dict[str, Any]:
        """Return what the model sees of a root, once it is laid out; begins that if need be.

        Raises `EngineUnavailable` where there is no context, with the reason.
        """
        self.begin(root, engine)
        return await self._live[root].described()

    def forget_sent(self, root: Path) -> None:
        """Note that the engine has lost the context: it is given again with the next use."""
        if live := self._live.get(root):
            live.sent = None

    def changed_on_disk(self, paths: list[Path]) -> None:
        """Hear from the client that something happened at these paths."""
        for live in self._live.values():
            for path in paths:
                live.changes.add(path, time.monotonic())

    def end_all(self) -> None:
        """Stop watching; what the engine has read stays with it."""
        for live in self._live.values():
            live.end()
        self._live.clear()


class _Live:
    """One root's context while it lives."""

    def __init__(self, server: "QcnServer", root: Path, engine: "OwnEngine") -> None:
        from qcn_indexer.changes import Changes

        self.name = f"{uuid.uuid4().hex}:{root.name}"
        self.engine = engine
        self.generation = 0
        self.ready = False
        self._settled = asyncio.Event()  # laid out, or known that it will not be
        self._problem = ""
        self.sent: Layout | None = None
        self._server = server
        self._root = root
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._turn = asyncio.Lock()  # who changes the repository
        self._repository: Repository | None = None
        self._watcher: Watcher | None = None
        self.changes: Changes = Changes(root, self._wake)
        self._task = asyncio.create_task(self._keep())

    @property
    def failed(self) -> bool:
        """Whether there will be no context, for the reason that `described` gives."""
        return self._task.done()

    @property
    def shown_whole(self) -> frozenset[PurePosixPath]:
        """The files of which the layout shows all."""
        return frozenset() if self._repository is None else self._repository.shown_whole

    def end(self) -> None:
        """Stop."""
        self.ready = False
        self._task.cancel()
        if self._watcher is not None:
            # Joining its threads may take a moment; nobody needs to wait for that.
            self._loop.run_in_executor(None, self._watcher.stop)
            self._watcher = None

    async def fresh_for(self, document: Document) -> str | None:
        """Take in the other open buffers and give the engine what is new."""
        repository = self._repository
        assert repository is not None
        buffers, current = self._buffers(), self._path_of(document)
        async with self._turn:
            await asyncio.to_thread(repository.show, buffers, current)
            if repository.compaction_due:
                self._woken.set()
            await self._send(repository)
        return self.name

    async def described(self) -> dict[str, Any]:
        """Return the engine's view of the context, and the files that had no place in it."""
        await self._settled.wait()
        if self._repository is None:
            raise EngineUnavailable(self._problem)
        async with self._turn:
            await self._send(self._repository)
        view = await self.engine.describe_context(self.name)
        left_out = [(str(path), reason) for path, reason in self._repository.left_out]
        return {"root": str(self._root), **view, "left_out": left_out}

    async def _keep(self) -> None:
        try:
            await self._read()
            self._settled.set()
            await self._watch()
            while True:
                await self._until_work()
                await self._take_in()
        except (EngineUnavailable, Superseded) as problem:
            self._problem = f"{self._root} has no context: {problem}"
            logger.info("%s", self._problem)
        except Exception as error:  # a mistake of ours: completions go on without the context
            self._problem = f"the context of {self._root} failed ({error!r}); see the log"
            logger.exception("%s: the repository context failed", self._root.name)
        self.ready = False
        self._settled.set()

    async def _read(self) -> None:
        from qcn_lsp.context.repository import Repository

        limit = await self.engine.context_limit()
        wanted = self._server.settings.context.tokens
        if not wanted and limit < LEAST_LIMIT:
            raise EngineUnavailable(
                f"the model takes {limit} tokens of one, less than is worth it; "
                "set qcn.context.tokens to have one all the same"
            )
        budget = min(wanted or limit, limit) // self._roots()
        if budget < LEAST_TOKENS:
            raise EngineUnavailable(f"{budget} tokens are too few for one")
        repository = Repository(self._root, count=self._count, budget=budget)
        await asyncio.to_thread(repository.read, self._buffers())
        self._repository = repository
        await self._send(repository)
        self.ready = True
        logger.info("%s: laid out for the model", self._root.name)

    def _roots(self) -> int:
        return max(1, len(self._server.workspace_roots))

    async def _watch(self) -> None:
        """Have the system tell of changes, where the client does not."""
        if self._server.client_watches_files:
            return
        from qcn_indexer.observe import Watcher

        def say(message: str) -> None:
            self._loop.call_soon_threadsafe(
                self._server.status.tell, [message], types.MessageType.Info
            )

        self._watcher = await asyncio.to_thread(Watcher, self._root, self.changes, say)

    async def _until_work(self) -> None:
        """Return when a burst of events is over, or a new base is due."""
        assert self._repository is not None
        while not self._repository.compaction_due:
            self._woken.clear()  # before looking: what comes after that wakes us
            pause = self.changes.delay(time.monotonic())
            if pause == 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)

    async def _take_in(self) -> None:
        repository, buffers = self._repository, self._buffers()
        assert repository is not None
        async with self._turn:
            await asyncio.to_thread(repository.look, self.changes.take())
            await self._send_if_possible(repository)
            layout = repository.layout
        if not repository.compaction_due:
            return
        anew = await asyncio.to_thread(repository.compacted, buffers)
        async with self._turn:
            if repository.swap(anew, layout):
                await self._send_if_possible(repository)

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
            await self.engine.delete_context(self.name)
            repository.purge, self.sent = False, None
        layout = repository.layout
        if layout == self.sent:
            return
        self.generation += 1
        await self.engine.put_context(self._message(layout))
        self.sent = layout

    def _message(self, layout: "Layout") -> ContextLayout:
        segments = tuple(
            ContextSegment(segment.hash, str(segment.path), segment.text, segment.zone, segment.hot)
            for segment in layout.segments
        )
        return ContextLayout(self.name, self._root.name, segments)

    def _count(self, text: str) -> int:
        """The engine's count of tokens, for worker threads."""
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
