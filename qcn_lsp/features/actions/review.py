"""Having the chat model look through a function for weaknesses that no rule sees, on demand.

What it finds is underlined as unconfirmed until the function changes. A model that cannot chat, or
whose answer is not in form twice, is told of instead of anything being underlined.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qcn_indexer.secrets import looks_secret

from qcn_lsp.engine.answers import MalformedAnswer, block_of
from qcn_lsp.engine.messages import ChatRequest
from qcn_lsp.engine.writing import Writing
from qcn_lsp.features.actions import prompts
from qcn_lsp.features.actions.model_actions import LONGEST_PIECE, cannot_chat
from qcn_lsp.features.actions.provider import (
    ActionFailed,
    Asked,
    NothingToDo,
    Offer,
    Order,
    Outcome,
)
from qcn_lsp.features.location import location
from qcn_lsp.rewriting import Piece
from qcn_lsp.scan.grammars import BY_LANGUAGE
from qcn_lsp.scan.review import Reviewed, findings_in

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

KIND = "review.security.qcn"
REVIEW = "review"
ANSWER_TOKENS = 1_024


class SecurityReview:
    """The provider of `review.security.qcn`."""

    name = "review"
    kinds: tuple[str, ...] = (KIND,)
    actions = frozenset({REVIEW})

    def __init__(self, server: "QcnServer") -> None:
        self._server = server

    async def offers(self, asked: Asked) -> Sequence[Offer]:
        """Return the review of the function at the place, where actions were asked for by hand."""
        from qcn_indexer.enclosing import function_around

        document = asked.document
        settings = self._server.settings_for(document.uri)
        covered = document.language_id in BY_LANGUAGE
        if asked.automatic or not covered or not settings.security.findings:
            return []
        path, _ = location(document, self._server.workspace_roots)
        if looks_secret(path, document.text):
            return []
        function = await asyncio.to_thread(
            function_around, path, document.text, asked.start, asked.end
        )
        if function is None:
            return []
        title = f"Review {function.name} for weaknesses (qcn)"
        return [
            Offer(
                title,
                KIND,
                REVIEW,
                asked.start,
                asked.end,
                by_model=True,
                shows=True,
                disabled=cannot_chat(settings),
            )
        ]

    async def carry_out(self, order: Order) -> Outcome:
        """Review the function at the place."""
        from qcn_indexer.enclosing import function_around

        document = order.document
        path, _ = location(document, self._server.workspace_roots)
        if reason := looks_secret(path, document.text):
            raise ActionFailed(f"No model is shown {path.name}: {reason}.")
        if reason := cannot_chat(self._server.settings):
            raise ActionFailed(reason)
        function = await asyncio.to_thread(
            function_around, path, document.text, order.start, order.end
        )
        if function is None:
            raise ActionFailed("There is no function here to review.")
        piece = Piece(path, document.text, function.start, function.end)
        if len(piece.old) > LONGEST_PIECE:
            raise ActionFailed("The function is too long for a model to review.")
        order.report("The model reads")
        reviewed = await self._reviewed(piece, order)
        self._server.findings.take_review(document.uri, reviewed)
        count = len(reviewed.findings)
        if not count:
            return NothingToDo(f"The model finds no weakness in {function.name}. It may be wrong.")
        what = "one possible weakness" if count == 1 else f"{count} possible weaknesses"
        return NothingToDo(f"The model tells of {what} in {function.name}, none confirmed.")

    async def _reviewed(self, piece: Piece, order: Order) -> Reviewed:
        """Ask; an answer that is not in form is asked for once more."""
        messages, problem = prompts.for_review(piece), ""
        for _ in range(2):
            request = ChatRequest(messages, max_tokens=ANSWER_TOKENS)
            answer = await self._server.engine_for("chat").chat(request, Writing(order.report))
            try:
                return Reviewed(piece.old, findings_in(block_of(answer).text, piece.old))
            except MalformedAnswer as refusal:
                problem = str(refusal)
                messages = (*messages, *prompts.again(answer.text, problem))
        raise ActionFailed(
            f"The model's review cannot be used, nor its second one. {problem} "
            "A small model is seldom able to do this."
        )
