"""`textDocument/codeAction`: the actions for a place, in the form that the client can use.

An edit that is known goes along. One that takes work is asked for when it is chosen: by
`codeAction/resolve` where the client does that, else by a command, which applies it.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from lsprotocol import types

from qcn_lsp.features.actions.abilities import Abilities
from qcn_lsp.features.actions.provider import Asked, Offer, Provider
from qcn_lsp.features.actions.ticket import Ticket
from qcn_lsp.features.actions.workspace_edit import workspace_edit

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

CARRY_OUT = "qcn.action"
"""The command that carries out an action; its argument is a ticket."""

Entry = types.CodeAction | types.Command


async def code_actions(
    server: "QcnServer", providers: Iterable[Provider], params: types.CodeActionParams
) -> list[Entry]:
    """Answer with what the providers offer, of the kinds that the client asks for.

    One that takes partial results is sent each provider's as soon as it has them; nothing is left
    for the answer then.
    """
    document = server.documents.get(params.text_document.uri)
    if document is None or not server.settings_for(document.uri).enable:
        return []
    start = document.offset_at(params.range.start, server.encoding)
    end = document.offset_at(params.range.end, server.encoding)
    asked = Asked(
        document,
        min(start, end),
        max(start, end),
        tuple(params.context.diagnostics),
        params.context.trigger_kind is types.CodeActionTriggerKind.Automatic,
    )
    entries: list[Entry] = []
    digest = cache(document.digest)
    for provider in providers:
        if any(_wanted(kind, params.context.only) for kind in provider.kinds):
            for offer in await provider.offers(asked):
                if _wanted(offer.kind, params.context.only):
                    entries += _entries(server, provider, asked, offer, digest)
        if params.partial_result_token is not None and entries:
            server.progress(types.ProgressParams(params.partial_result_token, entries))
            entries = []
    return entries


def _wanted(kind: str, only: Sequence[types.CodeActionKind | str] | None) -> bool:
    """Return whether a kind, or one above it, is among those that the client wants."""
    if not only:  # some clients send an empty list where they want no kind in particular
        return True
    names = [one.value if isinstance(one, types.CodeActionKind) else one for one in only]
    return any(name in ("", kind) or kind.startswith(f"{name}.") for name in names)


def _entries(
    server: "QcnServer",
    provider: Provider,
    asked: Asked,
    offer: Offer,
    digest: Callable[[], str],
) -> list[Entry]:
    """Return the offer's one entry, or none where the client can do nothing with it."""
    client = Abilities.of(server.client_capabilities)
    if offer.disabled and not client.disabled:
        return []
    ticket = _ticket(server, provider, asked, offer, digest())
    command = types.Command(offer.title, CARRY_OUT, arguments=[ticket.to_data()])
    can_be_told = offer.shows or client.applies
    if not client.literals:
        return [command] if can_be_told and not offer.disabled else []
    action = types.CodeAction(
        title=offer.title,
        kind=offer.kind,
        diagnostics=list(offer.diagnostics) or None,
        tags=[types.CodeActionTag.LlmGenerated] if offer.by_model and client.model_tag else None,
    )
    if offer.disabled:
        action.disabled = types.CodeActionDisabled(reason=offer.disabled)
    elif offer.change is not None:
        action.edit = workspace_edit(offer.change, client, server.encoding)
    elif client.resolves and not offer.shows:
        action.data = ticket.to_data()
    elif can_be_told:
        action.command = command
    else:
        return []
    return [action]


def _ticket(
    server: "QcnServer", provider: Provider, asked: Asked, offer: Offer, digest: str
) -> Ticket:
    document = asked.document
    span = types.Range(
        document.position_at(offer.start, server.encoding),
        document.position_at(offer.end, server.encoding),
    )
    return Ticket.of(
        provider.name,
        offer.action,
        title=offer.title,
        document=document,
        digest=digest,
        span=span,
        arguments=offer.arguments,
    )
