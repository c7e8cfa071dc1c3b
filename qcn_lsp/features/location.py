"""Where a document lies, as far as a model is told."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from qcn_indexer.open_files import root_of

from qcn_lsp.documents import Document, DocumentStore
from qcn_lsp.uris import file_path

# Of a language whose text has no file: a name by which its grammar is found, and models know it.
_SUFFIXES = {
    "python": ".py",
    "javascript": ".js",
    "javascriptreact": ".jsx",
    "typescript": ".ts",
    "typescriptreact": ".tsx",
    "go": ".go",
    "java": ".java",
    "c": ".c",
    "cpp": ".cpp",
    "rust": ".rs",
    "csharp": ".cs",
    "ruby": ".rb",
    "php": ".php",
    "shellscript": ".sh",
    "lua": ".lua",
}


def location(document: Document, roots: Sequence[Path]) -> tuple[PurePosixPath, Path | None]:
    """Return the document's path below its workspace root, and the root.

    Without a root, the path is the name alone: where the user keeps files is not for the model.
    What is no file, as a cell of a notebook, has a name with the ending of its language.
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
    suffix = _SUFFIXES.get(document.language_id, "")
    name = name.removesuffix(".ipynb") if suffix else name
    return PurePosixPath(f"{name or 'untitled'}{'' if name.endswith(suffix) else suffix}")
