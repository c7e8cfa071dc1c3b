"""Where a document lies, as far as a model is told."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from qcn_indexer.open_files import root_of

from qcn_lsp.documents import Document, DocumentStore
from qcn_lsp.uris import file_path


def location(document: Document, roots: Sequence[Path]) -> tuple[PurePosixPath, Path | None]:
    """Return the document's path below its workspace root, and the root.

    Without a root, the path is the name alone: where the user keeps files is not for the model.
    """
    path = file_path(document.uri)
    if path is None:
        name = document.uri.rpartition("/")[2].rpartition(":")[2]
        # A lone surrogate is no character, and the engine takes none.
        return PurePosixPath(name.encode(errors="replace").decode() or "untitled"), None
    root = root_of(path, roots)
    return PurePosixPath(path.relative_to(root).as_posix() if root else path.name), root


def buffers_below(documents: DocumentStore, root: Path) -> dict[PurePosixPath, str]:
    """Return the texts of the open documents below a workspace folder, by their paths there."""
    return {
        PurePosixPath(path.relative_to(root).as_posix()): opened.text
        for opened in documents.open_documents()
        if (path := file_path(opened.uri)) is not None and path.is_relative_to(root)
    }
