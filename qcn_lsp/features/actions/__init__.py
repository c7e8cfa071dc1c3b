"""Code actions: `textDocument/codeAction`, `codeAction/resolve`, and the commands behind them.

`menu.py` answers what there is to choose, `orders.py` carries out what was chosen. What there is
comes from providers (`provider.py`); between the two requests an action is a ticket (`ticket.py`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lsprotocol import types

from qcn_lsp.features.actions.menu import CARRY_OUT, Entry, code_actions
from qcn_lsp.features.actions.orders import Orders, read_ticket
from qcn_lsp.features.actions.reading import SCHEME
from qcn_lsp.features.actions.refactoring import refactoring

if TYPE_CHECKING:
    from qcn_lsp.features.actions.provider import Provider
    from qcn_lsp.server import QcnServer

__all__ = ["REFACTOR", "register"]

REFACTOR = "qcn.refactor"
"""The command that has the model change a range as it is told; see `refactoring.py`."""


def register(server: "QcnServer", providers: "Sequence[Provider]") -> None:
    """Answer the requests on `server` with the actions of `providers`, in their order."""
    orders = Orders(server, providers)
    options = types.CodeActionOptions(
        code_action_kinds=[kind for provider in providers for kind in provider.kinds],
        resolve_provider=True,
    )

    @server.feature(types.TEXT_DOCUMENT_CODE_ACTION, options)
    async def offer(params: types.CodeActionParams) -> list[Entry]:
        return await code_actions(server, providers, params)

    @server.feature(types.CODE_ACTION_RESOLVE)
    async def resolve(action: types.CodeAction) -> types.CodeAction:
        return await orders.resolve(action)

    texts = types.TextDocumentContentOptions(schemes=[SCHEME])

    @server.feature(types.WORKSPACE_TEXT_DOCUMENT_CONTENT, texts)
    def content(params: types.TextDocumentContentParams) -> types.TextDocumentContentResult:
        return types.TextDocumentContentResult(orders.reading.text_of(params.uri))

    @server.command(CARRY_OUT)
    async def carry_out(ticket: Any) -> None:
        await orders.run(read_ticket(ticket))

    @server.command(REFACTOR)
    async def refactor(instruction: Any) -> None:
        await orders.run(refactoring(server, instruction))
