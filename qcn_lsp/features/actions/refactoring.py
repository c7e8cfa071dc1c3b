"""The command `qcn.refactor`: have the chat model change a range as the user says.

Its argument is {uri, range, instruction}. An empty range stands for the function around it.
"""

from typing import TYPE_CHECKING

from lsprotocol import types
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams

from qcn_lsp.features.actions.model_actions import ModelActions
from qcn_lsp.features.actions.ticket import Instruction, MalformedTicket, Ticket

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer


def refactoring(server: "QcnServer", argument: object) -> Ticket:
    """Return the ticket for the document as it is now."""
    try:
        wanted = Instruction.read(argument)
    except MalformedTicket as problem:
        raise JsonRpcInvalidParams(str(problem)) from None
    document = server.documents.get(wanted.uri)
    if document is None:
        failed = types.LSPErrorCodes.RequestFailed.value
        raise JsonRpcException(f"{wanted.uri} is not open", failed)
    return Ticket.of(
        ModelActions.name,
        "refactor",
        title="Refactor: " + " ".join(wanted.instruction.split())[:60],
        document=document,
        digest=document.digest(),
        span=wanted.range.to_lsp(),
        arguments={"instruction": wanted.instruction},
    )
