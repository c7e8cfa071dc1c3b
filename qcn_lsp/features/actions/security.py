"""Fixes of security findings, for the menu: offered with what they have shown, never preferred.

A finding's deterministic fix is judged before it is offered, without anything being run, so that
its title tells what it has shown. What takes a model or the project's tests happens when the action
is chosen; where the client asks for no edit then, only deterministic fixes are offered, with it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from qcn_indexer.open_files import withheld
from qcn_indexer.secrets import looks_secret

from qcn_lsp.documents import Document
from qcn_lsp.engine.messages import ChatRequest, ChatResult
from qcn_lsp.engine.writing import Writing
from qcn_lsp.features.actions.abilities import Abilities
from qcn_lsp.features.actions.provider import (
    ActionFailed,
    Asked,
    Change,
    ChangedFile,
    NothingToDo,
    Offer,
    Order,
    Outcome,
)
from qcn_lsp.features.location import location
from qcn_lsp.scan.finding import Finding
from qcn_lsp.scan.process import ScanFailed

if TYPE_CHECKING:
    from qcn_lsp.fixes.attempts import Accepted
    from qcn_lsp.fixes.candidate import Subject
    from qcn_lsp.fixes.findings import Scan
    from qcn_lsp.fixes.prompt import Surroundings
    from qcn_lsp.fixes.trial import Trials
    from qcn_lsp.proving import ProvingGround
    from qcn_lsp.server import QcnServer

    _Judging = asyncio.Task[tuple[Subject, Accepted] | None]

KIND = "quickfix.security.qcn"
FIX, PROVE = "fix", "prove"
EXPLOITED = ("python", "javascript")  # what exploit tests are written for
TEST_SECONDS = 120.0  # of one run of the project's tests, while somebody waits for an edit
SCAN_SECONDS = 60.0  # for one text, with the scans before it


class SecurityFixes:
    """The provider of `quickfix.security.qcn`."""

    name = "security"
    kinds: tuple[str, ...] = (KIND,)
    actions = frozenset({FIX, PROVE})

    def __init__(self, server: "QcnServer") -> None:
        self._server = server
        self._grounds: dict[str, asyncio.Task[ProvingGround]] = {}  # by the setting
        self._judged: tuple[Document, dict[Finding, _Judging]] | None = None  # of the last document

    async def offers(self, asked: Asked) -> Sequence[Offer]:
        """Return a fix for each finding at the place, by the rule where it knows one."""
        document, offers = asked.document, list[Offer]()
        if not self._server.settings_for(document.uri).security.findings:
            return []
        resolves = Abilities.of(self._server.client_capabilities).resolves
        for finding in await self._server.findings.of(document):
            if not _at(asked, finding):
                continue
            judged = await self._by_its_rule(document, finding)
            if judged is not None:
                offers.append(_by_rule(asked, finding, judged, resolves))
            elif resolves:
                offers += self._by_model(asked, finding)
        return offers

    async def carry_out(self, order: Order) -> Outcome:
        """Look for a fix, and have it climb as far as this machine allows."""
        from qcn_lsp.fixes.attempts import Search
        from qcn_lsp.fixes.words import no_fix

        subject, root = await self._subject(order)
        no_model = self._cannot_chat() or await asyncio.to_thread(_no_model, root, subject)
        search = Search(
            self._scanner(order.document),
            chats=None if no_model else _ChatsBehind(self._server, root, order.report),
            no_model=no_model,
            trials=self._trials(subject, root),
            no_tests="the file is in no workspace folder",
            exploit=order.ticket.action == PROVE,
            report=order.report,
        )
        found = await search.run(subject, await self._surroundings(subject, root))
        if found.accepted is None:
            return NothingToDo(" ".join(no_fix(found)))
        return _change(order.document, subject, found.accepted)

    async def _by_its_rule(
        self, document: Document, finding: Finding
    ) -> "tuple[Subject, Accepted] | None":
        """The rule's own fix, judged once for a text, however often the editor asks.

        VS Code asks at each move of the cursor, and drops the question behind its menu when it
        does: judging goes on then, for the next one.
        """
        if self._judged is None or self._judged[0] != document:
            self._judged = document, {}
        judging = self._judged[1]
        if (known := judging.get(finding)) is None or (known.done() and not _has_fix(known)):
            path, _ = location(document, self._server.workspace_roots)
            work = asyncio.to_thread(
                _deterministic, path, document, finding, self._scanner(document)
            )
            known = judging[finding] = asyncio.create_task(work)
        return await asyncio.shield(known)

    def _by_model(self, asked: Asked, finding: Finding) -> list[Offer]:
        """A fix that is still to be found; and one more with an exploit test, if asked by hand."""
        from qcn_lsp.fixes.words import title

        cannot = self._cannot_chat()
        if cannot and asked.automatic:
            return []  # no light bulb for what cannot be done
        offer = _offer(asked, finding, FIX, title(finding), by_model=True, disabled=cannot)
        if cannot or asked.automatic or asked.document.language_id not in EXPLOITED:
            return [offer]
        proving = title(finding, tail=" (and prove it by an exploit test)")
        return [offer, _offer(asked, finding, PROVE, proving, by_model=True)]

    def _cannot_chat(self) -> str:
        """Why the chat model is known not to chat, or nothing."""
        from qcn_lsp.engine.runtime import EMBEDDED_MODEL
        from qcn_lsp.fixes.attempts import CAPABLE

        settings = self._server.settings
        embedded = settings.engine.url is None and settings.models.of("chat") == EMBEDDED_MODEL
        return f"{EMBEDDED_MODEL} only completes code; {CAPABLE} (`qcn.models.chat`)" * embedded

    def _scanner(self, document: Document) -> "Scan":
        """The scanner for worker threads; it works in its own process."""
        loop, findings = asyncio.get_running_loop(), self._server.findings

        def scan(text: str, path: PurePosixPath) -> Sequence[Finding]:
            asking = findings.in_text(text, document.language_id)
            answer = asyncio.run_coroutine_threadsafe(asking, loop)
            try:
                return answer.result(SCAN_SECONDS)
            except TimeoutError:
                answer.cancel()
                raise ScanFailed("the scanner is busy") from None

        return scan

    async def _subject(self, order: Order) -> "tuple[Subject, Path | None]":
        """The finding that was chosen, found again; raises `ActionFailed` where it is gone."""
        from qcn_lsp.fixes.candidate import Subject

        rule = order.ticket.arguments.get("rule")
        for finding in await self._server.findings.of(order.document):
            if (finding.rule, finding.start) == (rule, order.start):
                path, root = location(order.document, self._server.workspace_roots)
                return Subject(path, order.document.text, finding), root
        raise ActionFailed("The finding is not there any more: ask again.")

    def _trials(self, subject: "Subject", root: Path | None) -> "Trials | None":
        if root is None:
            return None
        from qcn_lsp.fixes.trial import Trials

        texts = {str(path): text for path, text in self._buffers(root).items()}
        return Trials(self._found_ground, root, subject, texts, seconds=TEST_SECONDS)

    async def _found_ground(self) -> "ProvingGround":
        """The proving ground, looked for once; whoever waits may give up."""
        from qcn_lsp.proving import ProvingGround

        sandbox = self._server.settings.security.sandbox
        if sandbox not in self._grounds:
            self._grounds[sandbox] = asyncio.create_task(ProvingGround.find(sandbox))
        return await asyncio.shield(self._grounds[sandbox])

    async def _surroundings(self, subject: "Subject", root: Path | None) -> "Surroundings | None":
        if root is None:
            return None
        from qcn_lsp.fixes.callers import surroundings

        return await asyncio.to_thread(surroundings, root, subject, self._buffers(root))

    def _buffers(self, root: Path) -> Mapping[PurePosixPath, str]:
        """The texts of the open files of a workspace folder."""
        texts = {}
        for document in self._server.documents.open_documents():
            path, holding = location(document, self._server.workspace_roots)
            if holding == root:
                texts[path] = document.text
        return texts


class _ChatsBehind:
    """The chat model, with a workspace folder in front where it has read that.

    `report` is told how its answers grow.
    """

    def __init__(
        self, server: "QcnServer", root: Path | None, report: Callable[[str], None]
    ) -> None:
        self._server, self._root, self._report = server, root, report

    async def chat(self, request: ChatRequest) -> ChatResult:
        """Answer the turns of `request`."""
        from qcn_lsp.context.chats import chat_in

        return await chat_in(self._server, self._root, request, Writing(self._report))


def _has_fix(judging: "_Judging") -> bool:
    """Whether it ended with a fix; any other end may have been the scanner's, which was busy."""
    return not judging.cancelled() and judging.exception() is None and judging.result() is not None


def _at(asked: Asked, finding: Finding) -> bool:
    """Whether a finding touches the lines of the place."""
    text = asked.document.text
    first = text.rfind("\n", 0, asked.start) + 1
    last = text.find("\n", asked.end)
    return finding.start <= (last if last >= 0 else len(text)) and first <= finding.end


def _deterministic(
    path: PurePosixPath, document: Document, finding: Finding, scan: "Scan"
) -> "tuple[Subject, Accepted] | None":
    """The rule's own fix, if it stands before the part of the ladder that runs nothing."""
    from qcn_lsp.fixes.attempts import Accepted
    from qcn_lsp.fixes.candidate import Subject, deterministic
    from qcn_lsp.fixes.ladder import quickly
    from qcn_lsp.fixes.refusal import Refusal

    subject = Subject(path, document.text, finding)
    if (candidate := deterministic(subject)) is None:
        return None
    judged = quickly(subject, candidate, scan)
    return None if isinstance(judged, Refusal) else (subject, Accepted(candidate, judged))


def _by_rule(
    asked: Asked, finding: Finding, judged: "tuple[Subject, Accepted]", resolves: bool
) -> Offer:
    """The offer of a rule's fix; with its edit where the client would not ask for it."""
    from qcn_lsp.fixes.words import title

    subject, accepted = judged
    label = title(finding, accepted.evidence)
    change = None if resolves else _change(asked.document, subject, accepted)
    return _offer(asked, finding, FIX, label, change=change)


def _offer(
    asked: Asked,
    finding: Finding,
    action: str,
    title: str,
    *,
    by_model: bool = False,
    disabled: str = "",
    change: Change | None = None,
) -> Offer:
    return Offer(
        title=title,
        kind=KIND,
        action=action,
        start=finding.start,
        end=finding.end,
        arguments={"rule": finding.rule},
        diagnostics=tuple(one for one in asked.diagnostics if one.code == finding.rule),
        by_model=by_model,
        disabled=disabled,
        change=change,
    )


def _change(document: Document, subject: "Subject", accepted: "Accepted") -> Change:
    from qcn_lsp.fixes.candidate import edits_between
    from qcn_lsp.fixes.words import documentation, title

    edits = tuple(edits_between(document.text, accepted.candidate.text))
    return Change(
        label=title(subject.finding, accepted.evidence),
        files=(ChangedFile(document, edits),),
        description=documentation(subject.finding, accepted),
    )


def _no_model(root: Path | None, subject: "Subject") -> str:
    """Why no model may see the file, or nothing."""
    reason = withheld(root, subject.path) if root is not None else None
    return reason or looks_secret(subject.path, subject.text) or ""
