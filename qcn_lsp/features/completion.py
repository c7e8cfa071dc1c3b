"""`textDocument/completion`: the suggestion as an entry of the editor's list.

Made for editors that show no ghost text. In one that does, the list is asked for at every
character and waits for its slowest source: there the entry is what the ghost text has already
been computed for, and the engine is not asked.
"""

import re
from typing import TYPE_CHECKING

from lsprotocol import types

from qcn_lsp.documents import Document
from qcn_lsp.features.suggestions import Place

if TYPE_CHECKING:
    from qcn_lsp.features.suggestions import Suggestions
    from qcn_lsp.server import QcnServer

# Where code continues and no word has been begun. Other servers' users expect a list there, so we
# do not open one of our own anywhere else.
TRIGGER_CHARACTERS = (".",)
_LABEL_LENGTH = 60
_WORD = re.compile(r"\w*\Z")


def register(server: "QcnServer", suggestions: "Suggestions") -> None:
    """Answer the request on `server`."""
    options = types.CompletionOptions(trigger_characters=TRIGGER_CHARACTERS)

    @server.feature(types.TEXT_DOCUMENT_COMPLETION, options)
    async def handle(params: types.CompletionParams) -> types.CompletionList:
        return await completion(server, suggestions, params)


async def completion(
    server: "QcnServer", suggestions: "Suggestions", params: types.CompletionParams
) -> types.CompletionList:
    """Answer with the suggestion's first line and, where it has more, the whole; or nothing."""
    # Incomplete: what was typed since may deserve another suggestion.
    answer = types.CompletionList(is_incomplete=True, items=[])
    document = server.documents.get(params.text_document.uri)
    if document is None:
        return answer
    settings = server.settings_for(document.uri).completion
    if not settings.popup:
        return answer
    cursor = document.offset_at(params.position, server.encoding)
    capabilities = server.client_capabilities.text_document
    has_ghost_text = capabilities is not None and capabilities.inline_completion is not None
    text = await suggestions.at(
        Place(document, cursor),
        automatic=True,
        may_ask=not (has_ghost_text and settings.inline),
    )
    if text:
        markdown = _reads_markdown(capabilities)
        answer.items = _items(server, document, cursor, text, markdown=markdown)
    return answer


def _items(
    server: "QcnServer", document: Document, cursor: int, text: str, *, markdown: bool
) -> list[types.CompletionItem]:
    word = _WORD.search(document.text, max(0, cursor - 200), cursor)
    typed = word.group() if word else ""
    place = types.Range(
        document.position_at(cursor - len(typed), server.encoding),
        document.position_at(cursor, server.encoding),
    )
    whole = typed + text
    first_line = re.split(r"[\r\n]", whole, maxsplit=1)[0]
    choices = [first_line, whole] if first_line.strip() and first_line != whole else [whole]
    if choices[0] == typed:
        choices = choices[1:]  # nothing more on this line: only the lines below
    documentation = _documentation(document.language_id, whole, markdown=markdown)
    return [
        types.CompletionItem(
            label=_label(choice),
            kind=types.CompletionItemKind.Text,  # Snippet would have some clients sort it first
            detail="qcn",
            documentation=documentation,
            # After whatever the language's own server offers.
            sort_text=f"\uffff{number}",
            filter_text=first_line.strip() or typed,
            insert_text_format=types.InsertTextFormat.PlainText,
            insert_text_mode=_as_is(server.client_capabilities.text_document),
            text_edit=types.TextEdit(range=place, new_text=choice),
        )
        for number, choice in enumerate(choices)
    ]


def _label(text: str) -> str:
    """Return one readable line for a list: the first that says something, shortened."""
    first, *more = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if len(first) > _LABEL_LENGTH or more:
        return first[: _LABEL_LENGTH - 1] + "…"
    return first


def _documentation(language_id: str, text: str, *, markdown: bool) -> str | types.MarkupContent:
    if not markdown:
        return text
    # A fence longer than any in the text: the suggestion must not break out of its block.
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    language = re.sub(r"[^\w+#-]", "", language_id)
    return types.MarkupContent(types.MarkupKind.Markdown, f"{fence}{language}\n{text}\n{fence}")


def _as_is(
    capabilities: types.TextDocumentClientCapabilities | None,
) -> types.InsertTextMode | None:
    """Return the mode that leaves our indentation alone, for clients that know of modes."""
    item = capabilities and capabilities.completion and capabilities.completion.completion_item
    modes = item and item.insert_text_mode_support
    known = modes and types.InsertTextMode.AsIs in modes.value_set
    return types.InsertTextMode.AsIs if known else None


def _reads_markdown(capabilities: types.TextDocumentClientCapabilities | None) -> bool:
    item = capabilities and capabilities.completion and capabilities.completion.completion_item
    return bool(
        item
        and item.documentation_format
        and types.MarkupKind.Markdown in item.documentation_format
    )
