"""`textDocument/inlineCompletion`: the suggestion as ghost text."""

from dataclasses import replace
from typing import TYPE_CHECKING

from lsprotocol import types

from qcn_lsp.documents import Document
from qcn_lsp.features.suggestions import Place

if TYPE_CHECKING:
    from qcn_lsp.features.suggestions import Suggestions
    from qcn_lsp.server import QcnServer


def register(server: "QcnServer", suggestions: "Suggestions") -> None:
    """Answer the request on `server`."""

    # Inline completion is advertised only when registered with options.
    @server.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION, types.InlineCompletionOptions())
    async def handle(params: types.InlineCompletionParams) -> types.InlineCompletionList:
        return await inline_completion(server, suggestions, params)


async def inline_completion(
    server: "QcnServer", suggestions: "Suggestions", params: types.InlineCompletionParams
) -> types.InlineCompletionList:
    """Answer with one suggestion or none.

    The item replaces the line up to the cursor, so that its text begins with what is typed
    already: clients draw the difference.
    """
    nothing = types.InlineCompletionList(items=[])
    document = server.documents.get(params.text_document.uri)
    if document is None or not server.settings_for(document.uri).completion.inline:
        return nothing
    automatic = params.context.trigger_kind is not types.InlineCompletionTriggerKind.Invoked
    selected = params.context.selected_completion_info
    cursor = document.offset_at(params.position, server.encoding)
    if selected is None:
        text = await suggestions.at(Place(document, cursor), automatic=automatic)
        start = cursor - len(_line_before(document, cursor))
        typed = document.text[start:cursor]
    else:
        start = document.offset_at(selected.range.start, server.encoding)
        cursor = max(cursor, document.offset_at(selected.range.end, server.encoding))
        typed = selected.text
        chosen = _with(document, start, cursor, typed)
        place = Place(chosen, start + len(typed), supposed=True)
        text = await suggestions.at(place, automatic=automatic)
    if not text:
        return nothing
    whole = typed + text
    span = types.Range(
        document.position_at(start, server.encoding), document.position_at(cursor, server.encoding)
    )
    return types.InlineCompletionList(
        items=[types.InlineCompletionItem(insert_text=whole, filter_text=whole, range=span)]
    )


def _line_before(document: Document, cursor: int) -> str:
    line_start = max(document.text.rfind("\n", 0, cursor), document.text.rfind("\r", 0, cursor)) + 1
    return document.text[line_start:cursor]


def _with(document: Document, start: int, end: int, text: str) -> Document:
    """Return the document as it will be once the item selected in the list is accepted."""
    return replace(document, text=document.text[:start] + text + document.text[end:], lines=None)
