r"""Document identifiers and the file paths some of them stand for.

Clients spell one file in several ways: `file:///c%3A/x` and `file:///C:/x` are the same
document. Only the `file` scheme is taken apart; `untitled:`, `vscode-notebook-cell:`,
`vscode-remote:` and whatever else a client invents are opaque names.
"""

import posixpath
import re
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

_DRIVE = re.compile(r"/[A-Za-z]:(?=/|$)")


def file_path(uri: str) -> Path | None:
    """Return the path of a `file` URI, drive letter in lower case; None for other schemes.

    Also for a path that is no UTF-8: neither the model nor the protocol can name it. A `..` is
    taken as URIs have it (RFC 3986), so that no path leads out of the folder that it begins with.
    """
    try:
        parts = urlsplit(uri)  # ValueError: an unbalanced bracket in the host, say
        if parts.scheme.lower() != "file":
            return None
        # urlsplit takes "?" and "#" for query and fragment; a client that means them in a path
        # writes %3F and %23, so what is left after the path is no part of it.
        host, path = (unquote_to_bytes(part).decode() for part in (parts.netloc, parts.path))
    except ValueError:
        return None
    if "\0" in path or not path:
        return None
    path = posixpath.normpath(path)
    if _DRIVE.match(path):
        path = path[1].lower() + path[2:]
    if host not in ("", "localhost"):
        path = f"//{host}{path}"
    return Path(path)


def file_uri(path: Path) -> str:
    """Return the `file` URI of an absolute path."""
    name = path.as_posix()
    if name.startswith("//"):
        return "file:" + quote(name)
    return "file://" + quote(name if name.startswith("/") else "/" + name, safe="/:")


def same_document_key(uri: str) -> str:
    """Return a key that all spellings of one document's URI share."""
    path = file_path(uri)
    return uri if path is None else file_uri(path)
