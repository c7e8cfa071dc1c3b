"""Whether the files of a change are still what it was made for."""

import asyncio
from collections.abc import Iterable

from qcn_lsp.documents import DocumentStore
from qcn_lsp.features.actions.provider import ChangedFile
from qcn_lsp.uris import file_path


async def all_as_they_were(files: Iterable[ChangedFile], documents: DocumentStore) -> bool:
    """Return whether each is open, or on disk, with the text that its edits count in.

    The client cannot tell: a document that was closed and opened again has an old version number,
    and a file that is not open has none.
    """
    for file in files:
        now = documents.get(file.document.uri)
        if (now is not None) is not file.is_open:
            return False
        if now is not None:
            if (now.version, now.text) != (file.document.version, file.document.text):
                return False
        elif await asyncio.to_thread(_on_disk, file) != file.document.text:
            return False
    return True


def _on_disk(file: ChangedFile) -> str | None:
    from qcn_indexer.files import read_file

    path = file_path(file.document.uri)
    if path is None:
        return None
    try:
        return read_file(path, limit=4 * len(file.document.text) + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
