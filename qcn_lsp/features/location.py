"""Where a document lies, as far as a model is told."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from qcn_indexer.languages import ending_of
from qcn_indexer.open_files import root_of

from qcn_lsp.documents import Document, DocumentStore
from qcn_lsp.uris import file_path


def location(document: Document, roots: Sequence[Path]) -> tuple[PurePosixPath, Path | None]:
    """Return the document's path below its workspace root, and the root.

    Without a root, the path is the name alone: where the user keeps files is not for the model.
    What is no file, as a cell of a notebook, has a name with the ending of its language: by that
    its grammar is found, and models know it.
    """
    path = file_path(document.uri)
    if path is None:
        return _named(document), None
    root = root_of(path, roots)
    return PurePosixPath(path.relative_to(root).as_posix() if root else path.name), root


def buffers_below(documents: DocumentStore, root: Path) -> dict[PurePosixPath, str]:
    """Return the texts of the open documents below a workspace folder, by their paths there."""
    return {
        PurePosixPath(path.relative_to(root).as_posix()): opened.text
        for opened in documents.open_documents()
        if (path := file_path(opened.uri)) is not None and path.is_relative_to(root)
    }


def _named(document: Document) -> PurePosixPath:
    name = re.split("[#?]", document.uri)[0].rpartition("/")[2].rpartition(":")[2]
    name = name.encode(errors="replace").decode()  # a lone surrogate is no character
    suffix = ending_of(document.language_id) or ""
    name = name.removesuffix(".ipynb") if suffix else name
    return PurePosixPath(f"{name or 'untitled'}{'' if name.endswith(suffix) else suffix}")
