"""The signatures of a file: what its definitions are called and take, without their bodies.

Enough to know what to call. A file of a language that no grammar reads (`syntax.py`), or that
defines nothing, has no skeleton: the empty string. So has one that would be hardly shorter.
"""

from pathlib import PurePosixPath

from qcn_indexer.definitions import definitions

SHORTER = 2 / 3  # of the file's characters: what takes more is no help where the file is too long


def skeleton(path: PurePosixPath, text: str) -> str:
    """Return the signatures of `text`, in its order, or the empty string."""
    lines = "".join(f"{found.signature}\n" for found in definitions(path, text))
    return lines if len(lines) <= SHORTER * len(text) else ""
