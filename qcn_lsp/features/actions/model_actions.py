"""The actions that the chat model carries out: fix, complete, document, test, explain, refactor.

Guarantees
- Offering them costs a syntax tree of the file, made on a worker thread, and no more; without a
  light bulb's reason they are not offered by themselves.
- A model's edit replaces whole lines: a function, or what the user selected. It takes its place
  only as `qcn_lsp/rewriting.py` fits and accepts it; one that is malformed or refused is asked for
  once more in other words, and then the user is told.
- Documenting changes no code; completing, fixing and documenting leave the function its name.
- Where the chat model is known not to chat, the actions say so and ask nobody.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from lsprotocol import types
from qcn_indexer.secrets import looks_secret

from qcn_lsp.context.chats import chat_in
from qcn_lsp.documents import Document
from qcn_lsp.engine.answers import MalformedAnswer, block_of
from qcn_lsp.engine.messages import ChatMessage, ChatRequest, ChatResult, ContextFile
from qcn_lsp.engine.writing import Writing
from qcn_lsp.features.actions import prompts
from qcn_lsp.features.actions.elsewhere import Elsewhere
from qcn_lsp.features.actions.provider import (
    ActionFailed,
    Asked,
    Change,
    ChangedFile,
    NewFile,
    NothingToDo,
    Offer,
    Order,
    Outcome,
    Shown,
)
from qcn_lsp.features.actions.testing import PlaceForTests, place_for_tests, with_added
from qcn_lsp.features.location import location
from qcn_lsp.fixes.paths import is_test
from qcn_lsp.positions import line_end, plain
from qcn_lsp.rewriting import Piece, Unacceptable, fitted, judge
from qcn_lsp.scan.finding import TextEdit
from qcn_lsp.settings import Settings
from qcn_lsp.uris import file_uri

if TYPE_CHECKING:
    from qcn_indexer.functions import Function

    from qcn_lsp.server import QcnServer

FIX = "quickfix.qcn"
COMPLETE = "refactor.rewrite.complete.qcn"
DOCUMENT = "refactor.rewrite.document.qcn"
TEST = "refactor.test.qcn"
EXPLAIN = "explain.qcn"

OWN_SOURCE = "qcn"  # of the diagnostics that have fixes of their own, with their evidence
PATIENCE_SECONDS = 0.01  # of what an editor asks by itself
MOST_DIAGNOSTICS = 8  # that have an action each
LONGEST_TITLE = 60
LONGEST_PIECE = 24_000  # characters: what a model can write anew in one answer
EXPLANATION_TOKENS = 1_024
TEST_TOKENS = 4_096


class ModelActions:
    """Provides what the model of the role `chat` does with a piece of a document."""

    name = "model"
    kinds: tuple[str, ...] = (FIX, COMPLETE, DOCUMENT, TEST, EXPLAIN)

    def __init__(self, server: "QcnServer") -> None:
        self._server = server
        self._elsewhere = Elsewhere(server)
        self._look: asyncio.Task[Function | None] | None = None
        self._works = {
            "fix": self._fix,
            "complete": self._complete,
            "document": self._document,
            "test": self._test,
            "explain": self._explain,
            "refactor": self._refactor,
        }
        self.actions = frozenset(self._works)

    # --- What there is to choose ---------------------------------------------------------------

    async def offers(self, asked: Asked) -> Sequence[Offer]:
        """Return the actions for a place."""
        document = asked.document
        path, _ = location(document, self._server.workspace_roots)
        if looks_secret(path, document.text):
            return []
        cannot = cannot_chat(self._server.settings)
        if cannot and asked.automatic:
            return []  # no light bulb for what cannot be done
        offers = _fixes(asked, self._server.encoding)
        function = await self._function(path, asked)
        if function is not None and function.is_stub:
            offers.append(_offer(asked, "complete", f"Complete {function.name}", COMPLETE))
        if not asked.automatic:
            if function is not None:
                offers.append(_offer(asked, "document", f"Document {function.name}", DOCUMENT))
                if self._may_have_tests(document, path):
                    title = f"Write a test of {function.name}"
                    offers.append(_offer(asked, "test", title, TEST))
            if what := _to_explain(asked, function):
                offers.append(_offer(asked, "explain", f"Explain {what}", EXPLAIN, shows=True))
        return [_disabled(offer, cannot) for offer in offers] if cannot else offers

    async def _function(self, path: PurePosixPath, asked: Asked) -> "Function | None":
        """Return the function at a place; None also where that takes too long to be awaited."""
        from qcn_indexer.enclosing import function_around

        if asked.automatic and self._look is not None and not self._look.done():
            return None
        text, start, end = asked.document.text, asked.start, asked.end
        look = asyncio.create_task(asyncio.to_thread(function_around, path, text, start, end))
        self._look = look
        await asyncio.wait({look}, timeout=PATIENCE_SECONDS if asked.automatic else None)
        return look.result() if look.done() else None

    def _may_have_tests(self, document: Document, path: PurePosixPath) -> bool:
        _, root = location(document, self._server.workspace_roots)
        known = path.suffix in (".py", ".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs", ".go", ".java")
        return root is not None and known and not is_test(path)

    # --- What was chosen -------------------------------------------------------------------------

    async def carry_out(self, order: Order) -> Outcome:
        """Carry out one action."""
        path, _ = location(order.document, self._server.workspace_roots)
        if reason := looks_secret(path, order.document.text):
            raise ActionFailed(f"No model is shown {path.name}: {reason}.")
        if reason := cannot_chat(self._server.settings):
            raise ActionFailed(reason)
        return await self._works[order.ticket.action](order)

    async def _fix(self, order: Order) -> Outcome:
        piece, function = await self._piece(order)
        told = order.ticket.arguments
        problem = " ".join(told.get(key, "") for key in ("source", "code", "message")).strip()
        line = order.document.text.count("\n", piece.start, max(piece.start, order.start)) + 1
        problem = f"line {line} of the part: {problem}"
        others = await self._needed(order)
        messages = prompts.for_new_version(piece, prompts.FIX, elsewhere=others, problem=problem)
        return await self._rewrite(order, piece, messages, _keeps_name(function))

    async def _complete(self, order: Order) -> Outcome:
        piece, function = await self._piece(order)
        if function is None:
            raise ActionFailed("There is no function here to complete.")
        below = order.document.text[piece.end : order.start]
        if below.isspace():  # the blank lines up to the cursor are where the body goes
            rest = order.document.text[order.start :]
            spaces = len(rest) - len(rest.lstrip(" \t"))
            piece = _piece_of(order, piece.path, piece.start, order.start + spaces)
        messages = prompts.for_new_version(
            piece, prompts.COMPLETE, elsewhere=await self._needed(order)
        )
        return await self._rewrite(order, piece, messages, _keeps_name(function))

    async def _document(self, order: Order) -> Outcome:
        piece, function = await self._piece(order)
        if function is None:
            raise ActionFailed("There is no function here to document.")
        piece = _piece_of(order, piece.path, function.comment, function.end)
        messages = prompts.for_new_version(
            piece, prompts.DOCUMENT, elsewhere=await self._needed(order)
        )

        def check(new: str, piece: Piece) -> None:
            _keeps_name(function)(new, piece)
            _keeps_code(new, piece)

        return await self._rewrite(order, piece, messages, check)

    async def _refactor(self, order: Order) -> Outcome:
        piece, _ = await self._piece(order)
        instruction = order.ticket.arguments.get("instruction", "")
        messages = prompts.for_new_version(
            piece, f"The task: {instruction}", elsewhere=await self._needed(order)
        )
        return await self._rewrite(order, piece, messages, lambda new, piece: None)

    async def _explain(self, order: Order) -> Outcome:
        piece, function = await self._piece(order)
        messages = prompts.for_explanation(piece, await self._needed(order))
        subject = function.name if function and order.start == order.end else "the selection"
        heading = f"# {subject}, {piece.path.as_posix()}\n\n"

        def shown(text: str) -> Shown:
            return Shown(f"Explanation of {subject}", f"{heading}{text}\n")

        answer = await self._chat(
            order, messages, EXPLANATION_TOKENS, lambda text: order.draft(shown(text))
        )
        return shown(answer.text + ("\n\n…" if answer.finish_reason == "length" else ""))

    async def _test(self, order: Order) -> Outcome:
        piece, _ = await self._piece(order)
        path, root = location(order.document, self._server.workspace_roots)
        place = await asyncio.to_thread(place_for_tests, root, path) if root else None
        if place is None or root is None:
            raise ActionFailed(f"There is no place known for tests of {path.name}.")
        uri = file_uri(root / place.path)
        opened = self._server.documents.get(uri)
        existing = opened or Document(uri, "", 0, place.text or "")
        if reason := looks_secret(place.path, existing.text):
            raise ActionFailed(f"No model is shown {place.path.as_posix()}: {reason}.")
        others, name = await self._needed(order), place.path.as_posix()
        messages = prompts.for_test(piece, others, name, existing.text, place.framework)
        whole = Piece(place.path, existing.text, len(existing.text), len(existing.text))

        def accept(answer: str) -> Change:
            return self._with_test(answer, whole, existing, place, is_open=opened is not None)

        return await self._accepted(order, messages, TEST_TOKENS, accept)

    def _with_test(
        self,
        answer: str,
        whole: Piece,
        existing: Document,
        place: PlaceForTests,
        *,
        is_open: bool,
    ) -> Change:
        """Return the change that adds a test to its file; raises `Unacceptable`."""
        if not answer.strip():
            raise Unacceptable("It holds no test.")
        label = self._label(f"Test in {place.path.as_posix()}")
        if place.text is None and not is_open:
            judge(answer, whole)
            new_file = NewFile(existing.uri, plain(answer).strip("\n") + "\n")
            return Change(label, new_files=(new_file,), needs_confirmation=True)
        at, added = with_added(existing.text, plain(answer), place.path)
        added = added.replace("\n", line_end(existing.text))
        judge(added, Piece(place.path, existing.text, at, at))
        edit = ChangedFile(existing, (TextEdit(at, at, added),), is_open)
        return Change(label, (edit,), needs_confirmation=True)

    async def _rewrite(
        self, order: Order, piece: Piece, messages: tuple[ChatMessage, ...], check: "Check"
    ) -> Outcome:
        """Have the model write `piece` anew; `check` raises `Unacceptable` for what is refused."""

        def accept(answer: str) -> Outcome:
            new = fitted(answer, piece)
            if new == piece.old:
                return NothingToDo("The model changes nothing here.")
            judge(new, piece)
            check(new, piece)
            edit = TextEdit(piece.start, piece.end, new)
            return Change(self._label(order.ticket.title), (ChangedFile(order.document, (edit,)),))

        # A new version may be longer than the old, and a token has some three characters of code.
        return await self._accepted(order, messages, 1_024 + len(piece.old) // 2, accept)

    async def _accepted(
        self,
        order: Order,
        messages: tuple[ChatMessage, ...],
        max_tokens: int,
        accept: Callable[[str], Outcome],
    ) -> Outcome:
        """Return what `accept` makes of the answer's block; one it refuses is asked for again."""
        problem = ""
        for _ in range(2):
            answer = await self._chat(order, messages, max_tokens)
            try:
                return await asyncio.to_thread(accept, block_of(answer).text)
            except (MalformedAnswer, Unacceptable) as refusal:
                problem = str(refusal)
                messages = (*messages, *prompts.again(answer.text, problem))
        raise ActionFailed(f"The model's answer cannot be used, nor its second one. {problem}")

    async def _chat(
        self,
        order: Order,
        messages: tuple[ChatMessage, ...],
        max_tokens: int,
        so_far: Callable[[str], None] | None = None,
    ) -> ChatResult:
        """Ask the chat model, and show the user how its answer grows; `so_far` hears of it all."""
        order.report("The model reads")
        request = ChatRequest(messages, max_tokens=max_tokens)
        _, root = location(order.document, self._server.workspace_roots)
        return await chat_in(self._server, root, request, Writing(order.report, so_far))

    async def _needed(self, order: Order) -> tuple[ContextFile, ...]:
        """Return the definitions of other files that the code at the place needs."""
        return await self._elsewhere.needed(order.document, order.start)

    async def _piece(self, order: Order) -> "tuple[Piece, Function | None]":
        """Return what an action is about, and the function that this is, if it is one.

        What is selected, in whole lines, where the user's selection is what counts; else the
        function around the place, or the statement of the file.
        """
        from qcn_indexer.enclosing import function_around, statement_around

        path, _ = location(order.document, self._server.workspace_roots)
        text, start, end = order.document.text, order.start, order.end
        if start < end and order.ticket.action in ("explain", "refactor"):
            return _piece_of(order, path, *_whole_lines(text, start, end)), None
        function = await asyncio.to_thread(function_around, path, text, start, end)
        if function is not None:
            return _piece_of(order, path, function.start, function.end), function
        span = await asyncio.to_thread(statement_around, path, text, start, end)
        first, last = span or (start, end)
        return _piece_of(order, path, *_whole_lines(text, first, last)), None

    def _label(self, what: str) -> str:
        status = self._server.engine_for("chat").status
        model = status.model or self._server.settings.models.of("chat")
        return f"{what} (written by {model}: review it)"


Check = Callable[[str, Piece], None]
"""Raises `Unacceptable` where a new version of a piece may not take its place."""


def cannot_chat(settings: Settings) -> str:
    """Return why the chat model is known not to chat, without asking it; or nothing."""
    from qcn_lsp.engine.runtime import EMBEDDED_MODEL

    if settings.engine.url is not None or settings.models.of("chat") != EMBEDDED_MODEL:
        return ""
    return (
        f"{EMBEDDED_MODEL} completes code and cannot chat: set `qcn.models.chat` to a model that "
        "can, or `qcn.engine.url` to an endpoint that has one."
    )


def _fixes(asked: Asked, encoding: types.PositionEncodingKind) -> list[Offer]:
    """Return an action for each diagnostic at the place, of whatever server."""
    others = [one for one in asked.diagnostics if one.source != OWN_SOURCE]
    document = asked.document
    return [
        Offer(
            _cut(f"Fix: {' '.join(_message(one).split())}"),
            FIX,
            "fix",
            document.offset_at(one.range.start, encoding),
            document.offset_at(one.range.end, encoding),
            arguments={
                "message": _message(one),
                "source": one.source or "",
                "code": "" if one.code is None else str(one.code),
            },
            diagnostics=(one,),
            by_model=True,
        )
        for one in others[:MOST_DIAGNOSTICS]
    ]


def _message(diagnostic: types.Diagnostic) -> str:
    message = diagnostic.message
    return message if isinstance(message, str) else message.value


def _offer(asked: Asked, action: str, title: str, kind: str, *, shows: bool = False) -> Offer:
    return Offer(f"{title} (qcn)", kind, action, asked.start, asked.end, by_model=True, shows=shows)


def _disabled(offer: Offer, reason: str) -> Offer:
    return replace(offer, disabled=reason)


def _to_explain(asked: Asked, function: "Function | None") -> str:
    if asked.document.text[asked.start : asked.end].strip():
        return "the selection"
    return function.name if function else ""


def _piece_of(order: Order, path: PurePosixPath, start: int, end: int) -> Piece:
    piece = Piece(path, order.document.text, start, end)
    if len(piece.old) > LONGEST_PIECE:
        raise ActionFailed(
            f"The part is too long for a model to write anew ({len(piece.old)} characters, of "
            f"{LONGEST_PIECE} at most): select less."
        )
    if not piece.old.strip().strip("\ufeff"):  # a byte order mark is no code
        raise ActionFailed("There is no code here.")
    return piece


def _whole_lines(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the range of the lines that a range touches, without the last one's line end."""
    if end > start and text[end - 1] in "\r\n":
        end = start + len(text[start:end].rstrip("\r\n"))
    first = max(text.rfind("\n", 0, start), text.rfind("\r", 0, start)) + 1
    rest = re.match(r"[^\r\n]*", text[max(start, end) :])
    return first, max(start, end) + (len(rest[0]) if rest else 0)


def _keeps_name(function: "Function | None") -> Check:
    """Return the check that a new version defines the function of the same name."""

    def check(new: str, piece: Piece) -> None:
        from qcn_indexer.enclosing import function_around

        if function is None or not function.name:
            return
        text = piece.with_new(new)
        for found in re.finditer(rf"(?<!\w){re.escape(function.name)}(?!\w)", new):
            at = piece.start + found.start()
            defined = function_around(piece.path, text, at, at)
            if defined and defined.name == function.name and defined.start >= piece.start:
                return
        raise Unacceptable(f"It does not define {function.name}.")

    return check


def _keeps_code(new: str, piece: Piece) -> None:
    from qcn_indexer.enclosing import code_alone

    if code_alone(piece.path, piece.text) != code_alone(piece.path, piece.with_new(new)):
        raise Unacceptable("It changes code, not only comments and documentation.")


def _cut(title: str) -> str:
    return title if len(title) <= LONGEST_TITLE else title[: LONGEST_TITLE - 1] + "…"
