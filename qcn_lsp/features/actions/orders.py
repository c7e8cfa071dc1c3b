"""`codeAction/resolve` and the commands: an action that was chosen is carried out.

Guarantees
- What the client sends back is checked: a ticket that is not as we made it is refused, one for a
  document that has changed since is answered with ContentModified.
- While it is worked on the user sees that, and may end it. Ending it, by the progress bar or by
  `$/cancelRequest`, ends the request to the engine.
- No edit of a text that has changed while it was worked on. So only one edit of a document is
  resolved at a time: a newer one ends the older, which could not be applied behind it. (VS Code
  resolves whatever the mouse passes in its menu.)
- A failure is one sentence, told to the user: editors hide the errors of these requests in a log.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lsprotocol import types
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams

from qcn_lsp.engine.messages import EngineUnavailable, Superseded
from qcn_lsp.features.actions.abilities import Abilities
from qcn_lsp.features.actions.provider import (
    ActionFailed,
    Change,
    NothingToDo,
    Order,
    Outcome,
    Provider,
    Shown,
)
from qcn_lsp.features.actions.reading import Reading
from qcn_lsp.features.actions.ticket import MalformedTicket, Ticket
from qcn_lsp.features.actions.unchanged import all_as_they_were
from qcn_lsp.features.actions.workspace_edit import workspace_edit

if TYPE_CHECKING:
    from qcn_lsp.documents import Document
    from qcn_lsp.server import QcnServer

logger = logging.getLogger(__name__)


class Orders:
    """Carries out the actions of the providers."""

    def __init__(self, server: "QcnServer", providers: Sequence[Provider]) -> None:
        self._server = server
        self._providers = {provider.name: provider for provider in providers}
        self.reading = Reading(server)
        self._resolving: dict[str, asyncio.Task[object]] = {}  # by document

    async def resolve(self, action: types.CodeAction) -> types.CodeAction:
        """Answer with the action and its edit; without one where nothing is to be changed."""
        ticket = read_ticket(action.data)
        with self._failures_told(), self._alone(ticket.uri):
            outcome = await self._carry_out(ticket)
            if isinstance(outcome, Change):
                action.edit = self._edit(outcome)
        return action

    async def run(self, ticket: Ticket) -> None:
        """Carry out the action of a ticket, and have the client apply or show what comes of it."""
        with self._failures_told():
            outcome = await self._carry_out(ticket)
            if isinstance(outcome, Change):
                await self._apply(outcome)

    @contextmanager
    def _alone(self, uri: str) -> Iterator[None]:
        """End what is being resolved for a document, and be ended by what comes next."""
        task = _current_task()
        if older := self._resolving.get(uri):
            older.cancel()
        self._resolving[uri] = task
        try:
            yield
        except asyncio.CancelledError:
            if self._resolving.get(uri) is task:
                raise
            raise Superseded from None
        finally:
            if self._resolving.get(uri) is task:
                del self._resolving[uri]

    async def _carry_out(self, ticket: Ticket) -> Outcome:
        """Return what comes of a ticket; all but edits has been shown to the user then."""
        provider = self._providers.get(ticket.provider)
        if provider is None or ticket.action not in provider.actions:
            raise JsonRpcInvalidParams(f"there is no action {ticket.provider}.{ticket.action}")
        document = self._unchanged(ticket)
        if document is None:
            raise _content_modified(ticket)
        encoding = self._server.encoding
        start = document.offset_at(ticket.range.to_lsp().start, encoding)
        end = document.offset_at(ticket.range.to_lsp().end, encoding)
        with self._server.status.working(), self._progress(ticket.title) as report:
            first, last = min(start, end), max(start, end)
            with self.reading.draft() as draft:
                order = Order(ticket, document, first, last, report, draft.grow)
                outcome = await provider.carry_out(order)
        if isinstance(outcome, Shown):
            await draft.finish(outcome)
        elif isinstance(outcome, NothingToDo):
            self._tell(outcome.reason, types.MessageType.Info)
        elif not await self._still_fits(ticket, outcome):
            self._tell("The text has changed meanwhile, so nothing was edited: ask again.")
            raise _content_modified(ticket)
        return outcome

    def _unchanged(self, ticket: Ticket) -> "Document | None":
        """Return the document, where it is open in the ticket's version, with the same text."""
        document = self._server.documents.get(ticket.uri)
        if document is None or document.version != ticket.version:
            return None
        return document if document.digest() == ticket.digest else None

    async def _still_fits(self, ticket: Ticket, change: Change) -> bool:
        """Whether neither what the action is about has changed meanwhile nor what it edits."""
        as_they_were = await all_as_they_were(change.files, self._server.documents)
        return as_they_were and self._unchanged(ticket) is not None

    @contextmanager
    def _progress(self, title: str) -> Iterator[Callable[[str], None]]:
        """Show that work goes on while the block runs; yields what shows a message."""
        task = _current_task()

        def cancel() -> None:
            task.cancel()

        bar = self._server.status.progress_bar(title, cancel, measured=False)
        if bar is None:
            yield lambda message: None
            return
        ending = "Not done"
        try:
            yield lambda message: bar.show(0, message)
            ending = "Done"
        finally:
            bar.end(ending)

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Turn what may go wrong while the block runs into an answer, and tell the user."""
        try:
            yield
        except Superseded:
            cancelled = types.LSPErrorCodes.ServerCancelled.value
            raise JsonRpcException("a newer request took its place", cancelled) from None
        except (ActionFailed, EngineUnavailable) as problem:
            if isinstance(problem, EngineUnavailable):
                self._server.status.failed(str(problem))
            self._tell(str(problem))
            failed = types.LSPErrorCodes.RequestFailed.value
            raise JsonRpcException(str(problem), failed) from problem

    def _edit(self, change: Change) -> types.WorkspaceEdit:
        client = Abilities.of(self._server.client_capabilities)
        return workspace_edit(change, client, self._server.encoding)

    async def _apply(self, change: Change) -> None:
        if not Abilities.of(self._server.client_capabilities).applies:
            raise ActionFailed("This editor applies no edits that a language server sends.")
        answer = await self._server.workspace_apply_edit_async(
            types.ApplyWorkspaceEditParams(edit=self._edit(change), label=change.label)
        )
        if not answer.applied:
            reason = f" ({answer.failure_reason})" if answer.failure_reason else ""
            raise ActionFailed(f"The editor did not apply the edit{reason}.")

    def _tell(self, message: str, kind: types.MessageType = types.MessageType.Warning) -> None:
        self._server.window_show_message(types.ShowMessageParams(kind, message))


def _current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None  # handlers run in one
    return task


def read_ticket(data: object) -> Ticket:
    """Return the ticket that a client sent back; a malformed one is answered with InvalidParams."""
    try:
        return Ticket.read(data)
    except MalformedTicket as problem:
        raise JsonRpcInvalidParams(str(problem)) from None


def _content_modified(ticket: Ticket) -> JsonRpcException:
    code = types.LSPErrorCodes.ContentModified.value
    return JsonRpcException(f"{ticket.uri} has changed since the action was offered", code)
