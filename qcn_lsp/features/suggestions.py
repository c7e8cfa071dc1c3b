"""The text to suggest at a place: one answer for ghost text and for the editor's list.

Guarantees
- Never stale: an answer that a document has outgrown is not given. It is kept, though, and where
  what was typed since is its beginning, the next request is answered with the rest, without the
  engine.
- One request to the engine for each pause in the typing, and one per document at a time. What is
  typed on as suggested is answered at once, without the engine. Requests for the same place share
  one; one for another place ends it, here and in the engine. When the last client request for it
  is cancelled, so is the request to the engine.
- Not in the way: inside a word, where one corrects it, nothing is offered that was not asked for by
  hand.
- Prompt: while the engine is being started or reads its model, the answer is empty, and soon.
- No error for what is no fault of the request: an engine that fails is seen in the status.

Rejected: to let an older request to the engine run on in the hope that what is typed next agrees
with it. The engine would then be busy with it when the newer one comes, which waits longer more
often than it gains.
"""

import asyncio
import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from qcn_indexer.git_folders import repository_name
from qcn_indexer.open_files import ShownFile
from qcn_indexer.secrets import looks_secret

from qcn_lsp.context.chats import chat_in
from qcn_lsp.documents import Document
from qcn_lsp.engine.messages import (
    CompletionRequest,
    CompletionResult,
    ContextFile,
    EngineState,
    EngineUnavailable,
    NoChatModel,
    Superseded,
    UnknownContext,
)
from qcn_lsp.features.cache import AnswerCache, Key
from qcn_lsp.features.definitions import Definitions
from qcn_lsp.features.deletions import Deletions
from qcn_lsp.features.location import buffers_below, location
from qcn_lsp.features.prompt import Surroundings, around, inside_word, unfit
from qcn_lsp.features.search_replace import inserted, search_replace_chat
from qcn_lsp.positions import line_end, plain
from qcn_lsp.postprocess import Context, clean
from qcn_lsp.settings import Settings

if TYPE_CHECKING:
    from qcn_lsp.engine.link import EngineLink
    from qcn_lsp.server import QcnServer

logger = logging.getLogger(__name__)

# Collapses what arrives in one burst (a held cursor key) into one request to the engine.
DEBOUNCE_SECONDS = 0.05
# How long nothing is typed before the engine is asked by itself. At ten characters a second each
# gap is shorter, so that a run of typing costs the engine one request, at its end.
PAUSE_SECONDS = 0.15
# How long to wait for an engine that is not ready: next to nothing while typing, longer where the
# user asked by hand and sees the progress bar.
TYPING_PATIENCE_SECONDS = 0.3
ASKED_PATIENCE_SECONDS = 20.0
# Characters before and after the cursor: whole files, usually, in a few milliseconds.
FILTERS_SEE = 32_768


@dataclass(frozen=True, slots=True)
class Place:
    """Where a suggestion is wanted: offset `cursor` of `document`.

    `supposed`: the document's text is only about to be, such as with the item selected in a list.
    """

    document: Document
    cursor: int
    supposed: bool = False


@dataclass(slots=True)
class _Job:
    """A request under way, and how many client requests wait for it."""

    place: Place
    automatic: bool
    task: "asyncio.Task[str]"
    waiting: int = field(default=0)


class Suggestions:
    """Answers with the text to insert at a place."""

    def __init__(self, server: "QcnServer") -> None:
        self._server = server
        self._cache = AnswerCache()
        self._deletions = Deletions()
        self._secrets_told: set[str] = set()
        self._definitions = Definitions()
        self._repository_names: dict[Path, str] = {}  # of roots, read from disk once
        self._jobs: dict[str, _Job] = {}
        self._starting: asyncio.Task[bool] | None = None
        self._starting_engine: EngineLink | None = None

    async def at(self, place: Place, *, automatic: bool, may_ask: bool = True) -> str:
        """Return the text to insert at `place`; empty when there is nothing to suggest.

        `automatic`: not asked for by hand, so waiting and bringing back what was just deleted are
        out of place. `may_ask=False`: only what needs no request to the engine. Cancelling the
        caller cancels the request to the engine when nobody else waits for it.
        """
        await self._server.settled()
        document, cursor = place.document, place.cursor
        self._server.tally.refused = reason = self._refusal(place, automatic=automatic)
        if reason:
            logger.debug("nothing is offered in %s: %s", document.uri, reason)
            return ""
        here, behind = around(document.text, cursor), await self._behind(document)
        key = Key(document.uri, self._server.settings_for(document.uri), behind)
        deleted = "" if place.supposed else self._deletions.before(document.uri, here)
        text = self._cache.find(key, document.text, here)
        if text is None and may_ask:
            text = await self._wait(place, key, here, automatic=automatic)
            if self._is_outgrown(document, key.settings):
                return ""
        if not text or (automatic and deleted and text.startswith(deleted)):
            return ""
        return text

    def _refusal(self, place: Place, *, automatic: bool) -> str | None:
        document, cursor = place.document, place.cursor
        settings = self._server.settings_for(document.uri)
        if not settings.enable:
            return "qcn is turned off"
        if document.language_id in settings.completion.excluded_languages:
            return f"the language {document.language_id} is excluded"
        if reason := unfit(document.text, cursor):
            return reason
        if automatic and inside_word(document.text, cursor):
            return "the cursor is inside a word"
        path, _ = location(document, self._server.workspace_roots)
        if reason := looks_secret(path, document.text):
            if document.uri not in self._secrets_told:
                self._secrets_told.add(document.uri)
                logger.info("nothing is completed in %s: %s", document.uri, reason)
            return reason
        return None

    def _is_outgrown(self, document: Document, settings: Settings) -> bool:
        """Whether the text, or what the user wants to have done, is no longer what it was."""
        now = self._server.documents.get(document.uri)
        if now is None or now.edition != document.edition:
            return True
        return self._server.settings_for(document.uri) != settings

    async def _wait(self, place: Place, key: Key, here: Surroundings, *, automatic: bool) -> str:
        """Return the answer of the request for `place`, which others may wait for as well.

        Who asks by hand does not wait for what gives up sooner.
        """
        uri = place.document.uri
        job = self._jobs.get(uri)
        if job is None or job.place != place or (job.automatic and not automatic):
            if job is not None:
                job.task.cancel()
            task = asyncio.create_task(self._ask(place, key, here, automatic=automatic))
            job = self._jobs[uri] = _Job(place, automatic, task)
        job.waiting += 1
        try:
            await asyncio.wait({job.task})
        finally:
            job.waiting -= 1
            if not job.waiting:
                job.task.cancel()
                if self._jobs.get(uri) is job:
                    del self._jobs[uri]
        return "" if job.task.cancelled() else job.task.result()

    async def _ask(self, place: Place, key: Key, here: Surroundings, *, automatic: bool) -> str:
        """Ask the engine, clean its answer and keep it."""
        if automatic:
            typed_ago = self._server.documents.quiet_for(place.document.uri)
            await asyncio.sleep(max(DEBOUNCE_SECONDS, PAUSE_SECONDS - typed_ago))
            if self._is_outgrown(place.document, key.settings):
                return ""
        if not await self._ready(TYPING_PATIENCE_SECONDS if automatic else ASKED_PATIENCE_SECONDS):
            return ""
        if self._is_outgrown(place.document, key.settings):
            return ""
        try:
            with self._server.status.working():
                result, key = await self._complete(place.document, here, key)
            self._server.tally.milliseconds.append(result.milliseconds)
        except Superseded:
            return ""
        except EngineUnavailable as problem:
            logger.warning("no completion: %s", problem)
            self._server.status.failed(str(problem))
            return ""
        text = clean(_whole_lines(result), _context(place))
        self._cache.add(key, here, text)
        return text

    async def _complete(
        self, document: Document, here: Surroundings, key: Key
    ) -> tuple[CompletionResult, Key]:
        """Ask behind the repository's context where there is one, else with the open files.

        Returns `key` with what the context was by then: taking in a change makes it another.
        """
        if self._server.completes_by_chat:
            return await self._complete_by_chat(document, here), key
        engine, contexts = self._server.engine, self._server.contexts
        path, root = location(document, self._server.workspace_roots)
        read = self._server.settings_in(root).context.repository
        own = engine.own_engine if read else None
        if root is None or own is None:
            others = await self._others(document)
            return await engine.complete(self._request(document, here, others)), key
        contexts.begin(root, own)
        editions = self._editions(document)  # of the texts that are now taken in
        if context := await contexts.name_for(root, document):
            behind = replace(key, others=(contexts.state(root), *editions))
            whole = contexts.shown_whole(root)
            needed = await self._needed(root, path, document, here, whole)
            try:
                asked = self._request(document, here, needed, context)
                return await engine.complete(asked), behind
            except UnknownContext:
                contexts.forget_sent(root)
        others = await self._others(document)
        needed = await self._needed(root, path, document, here, {file.path for file in others})
        return await engine.complete(self._request(document, here, (*others, *needed))), key

    async def _complete_by_chat(self, document: Document, here: Surroundings) -> CompletionResult:
        """Ask for a search-and-replace; the text is empty where the answer is none."""
        path, root = location(document, self._server.workspace_roots)
        shown = await self._others(document)
        if root is not None:
            known = {file.path for file in shown}
            shown = (*shown, *await self._needed(root, path, document, here, known))
        asked = self._request(document, here, shown)
        chat = search_replace_chat(asked)
        models = self._server.settings.models
        try:
            if models.of("chat") == models.completion:
                answer = await chat_in(self._server, root, chat)
            else:  # the repository stands in front of the other model alone
                answer = await self._server.engine.chat(chat)
        except NoChatModel as error:
            cannot, remedy = "cannot chat", "`completion.format` to `fim`"
            if not self._server.engine.infills:
                cannot = "neither fills in the middle nor chats"
                remedy = "`models.completion` to one that does"
            raise NoChatModel(
                f"The model {self._server.engine.status.model} {cannot}: set {remedy}."
            ) from error
        return CompletionResult(
            text=inserted(answer.text, asked.prefix, asked.suffix) or "",
            finish_reason="stop",
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            completion_tokens=answer.completion_tokens,
            milliseconds=answer.milliseconds,
        )

    async def _needed(
        self,
        root: Path,
        path: PurePosixPath,
        document: Document,
        here: Surroundings,
        shown: Container[PurePosixPath],
    ) -> tuple[ShownFile, ...]:
        """Return definitions from files that are not `shown` to the model as a whole."""
        buffers = buffers_below(self._server.documents, root)
        return await self._definitions.near(
            root, path, document.text, here.cursor, shown=shown, buffers=buffers
        )

    async def _ready(self, patience: float) -> bool:
        """Return whether the engine answers requests within `patience` seconds; else start it."""
        engine = self._server.engine
        if engine.status.state is EngineState.READY:
            return True
        attempt = self._starting
        if attempt is None or attempt.done() or self._starting_engine is not engine:
            attempt = self._starting = asyncio.create_task(_started(engine))
            self._starting_engine = engine
        done, _ = await asyncio.wait({attempt}, timeout=patience)
        return bool(done) and not attempt.cancelled() and attempt.result()

    async def _behind(self, document: Document) -> tuple[object, ...]:
        """Return what stands for all that the model reads beside this document."""
        _, root = location(document, self._server.workspace_roots)
        state = None if root is None else self._server.contexts.state(root)
        if state is None:
            return await self._others(document)
        return state, *self._editions(document)

    def _editions(self, document: Document) -> tuple[int, ...]:
        """Return what stands for the texts of all other open documents."""
        opened = self._server.documents.open_documents()
        return tuple(one.edition for one in opened if one.uri != document.uri)

    async def _others(self, document: Document) -> tuple[ShownFile, ...]:
        """Return the other open files to show the model, in their order, as far as they may be."""
        path, root = location(document, self._server.workspace_roots)
        if root is None or not self._server.settings_in(root).context.open_files:
            return ()
        await self._server.open_files.judge(root)
        return self._server.open_files.beside(root / path, root)

    def _repository_name(self, root: Path) -> str:
        """Return the name that the root's context has too."""
        if root not in self._repository_names:
            self._repository_names[root] = repository_name(root)
        return self._repository_names[root]

    def _request(
        self,
        document: Document,
        here: Surroundings,
        others: Sequence[ShownFile],
        context: str | None = None,
    ) -> CompletionRequest:
        path, root = location(document, self._server.workspace_roots)
        return CompletionRequest(
            prefix=plain(here.prefix),
            suffix=plain(here.suffix),
            path=path.as_posix(),
            repo=self._repository_name(root) if root else "",
            context=context,
            extra=tuple(ContextFile(file.path.as_posix(), plain(file.text)) for file in others),
            max_tokens=self._server.settings_in(root).completion.max_tokens,
            stop=("\n",) if here.mid_line else (),
            supersede=document.uri,
        )


async def _started(engine: "EngineLink") -> bool:
    try:
        await engine.ensure_ready()
    except EngineUnavailable as problem:
        logger.info("the engine is not ready: %s", problem)  # the status tells the user
        return False
    return True


def _context(place: Place) -> Context:
    """Return what the filters see: more than the model, for brackets open far away."""
    text, cursor = place.document.text, place.cursor
    return Context(
        prefix=plain(text[max(0, cursor - FILTERS_SEE) : cursor]),
        suffix=plain(text[cursor : cursor + FILTERS_SEE]),
        language_id=place.document.language_id,
        line_end=line_end(text),
    )


def _whole_lines(result: CompletionResult) -> str:
    """Return the answer without a last line that the token limit cut short, if there are more."""
    if result.finish_reason == "length" and "\n" in result.text.strip():
        return result.text.rpartition("\n")[0]
    return result.text
