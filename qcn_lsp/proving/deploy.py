"""Deploying: what of a workspace stands in the sandbox, and a candidate's edits in it.

Everything but what the ignore rules or secrets leave out, of whatever kind and size: tests need
their data as well. Nothing is opened but ordinary files, no symbolic link is followed: links are
copied as links, and lead nowhere where they leave the copy. A device, a FIFO or a socket is left
out. Edits are put last, at their own path, and only there.
"""

import asyncio
import codecs
import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from qcn_indexer.files import read_file
from qcn_indexer.ignore import Ignore, ignore_at
from qcn_indexer.names import MARKERS
from qcn_indexer.secrets import secret_by_name, secret_folder, secret_in

from qcn_lsp.proving.outcomes import MIB, ProvingError
from qcn_lsp.proving.sandbox import Sandbox

MAX_FILES = 50_000
SEAL_SECONDS = 120.0
_HEAD = 8000
# No test needs them; the tools in the others are seen read-only, see `toolchains.py`.
_LEFT_OUT = frozenset({".git", ".hg", ".jj", ".svn", "node_modules", "__pycache__"})


@dataclass(frozen=True)
class Deployed:
    """The digest of each file that was put into the copy."""

    files: Mapping[str, bytes]


async def deploy(box: Sandbox, root: Path, edits: Mapping[str, str]) -> Deployed:
    """Copy the workspace into the sandbox, and put `edits` (path to whole text) in place.

    Raises `ProvingError` for an edit that leads out of the workspace or is another spelling of a
    file's name, and for a workspace that does not fit.
    """
    paths = await asyncio.to_thread(lambda: list(_entries(root)))
    _check(edits, paths)
    room = box.room.limits.disk_mib * MIB
    digests: dict[str, bytes] = {}
    modes = {path: 0o755 if status.st_mode & 0o100 else 0o644 for path, status in paths}
    for path, status in paths:
        if path in edits:
            continue
        if stat.S_ISLNK(status.st_mode):
            target = await asyncio.to_thread(_target, root / path)
            if target is not None:
                await box.tell("link", path=path, target=target)
            continue
        body = await asyncio.to_thread(_content, root / path, status, room)
        if body is None:
            continue
        room -= len(body)
        digests[path] = digest(body)
        await box.tell("put", body, path=path, mode=modes[path])
    for path, text in edits.items():
        body = text.encode("utf-8", "surrogateescape")
        digests[path] = digest(body)
        await box.tell("put", body, path=path, mode=modes.get(path, 0o644))
    await box.ask("seal", most=0, patience=SEAL_SECONDS)
    return Deployed(digests)


def without_hidden(root: Path, texts: Mapping[str, str]) -> dict[str, str]:
    """Return of open files (path to text) those that the copy may hold, saved or not.

    They are told by the rules for what lies on the disk, and by their newest text.
    """
    top = ignore_at(root)
    return {path: text for path, text in texts.items() if not _is_hidden(root, path, text, top)}


def _is_hidden(root: Path, path: str, text: str, rules: Ignore) -> bool:
    *folders, name = PurePosixPath(path).parts
    above = root
    for folder in folders:
        above = above / folder
        if _folder_left_out(above, rules):
            return True
        rules = rules.inside(folder)
    ignored = rules.whole or rules.reason(name, is_folder=False)
    return bool(ignored or secret_by_name(PurePosixPath(path)) or secret_in(text))


def digest(body: bytes) -> bytes:
    """Return what tells one content from another."""
    return blake2b(body, digest_size=16).digest()


def checked_path(path: str) -> str:
    """Return `path` if it is one below a root, in its plain form. Raises `ProvingError` else."""
    if not is_below(path) or "\\" in path:
        shown = path.encode("unicode_escape", "surrogateescape").decode("ascii")[:200]
        raise ProvingError(f"An edit names {shown!r}, which is no path below the workspace folder.")
    return path


def is_below(path: str) -> bool:
    """Return whether a path leads to a place below where it starts, by its names alone."""
    return "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


def _check(edits: Mapping[str, str], paths: list[tuple[str, os.stat_result]]) -> None:
    """Refuse edits that some machine would carry out elsewhere than others."""
    spelt = {_folded(path): path for path, _ in paths}
    known = {path for path, _ in paths}
    links = {path for path, status in paths if stat.S_ISLNK(status.st_mode)}
    for path in edits:
        checked_path(path)
        other = spelt.get(_folded(path))
        if path not in known and other is not None:
            raise ProvingError(f"An edit names {path!r}, but the file is {other!r}.")
        above = {str(parent) for parent in (PurePosixPath(path), *PurePosixPath(path).parents)}
        if crossed := above & links:
            raise ProvingError(f"An edit names {path!r}, but {crossed.pop()!r} is a symbolic link.")


def _folded(path: str) -> str:
    """Return the same text for all that a file system may take for one name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _entries(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the ordinary files and symbolic links of a workspace that may be seen."""
    if not root.is_dir():
        raise ProvingError(f"There is no folder {root}.")
    pending: list[tuple[PurePosixPath, Ignore]] = [(PurePosixPath(), ignore_at(root))]
    count = 0
    while pending:
        folder, rules = pending.pop()
        if folder.parts:
            rules = rules.inside(folder.name)
        if rules.whole:
            continue
        for name, status in _listed(root / folder):
            path = folder / name
            if stat.S_ISDIR(status.st_mode):
                if not _folder_left_out(root / path, rules):
                    pending.append((path, rules))
            elif _is_seen(path, status, rules):
                count += 1
                if count > MAX_FILES:
                    raise ProvingError(f"{root} holds more than {MAX_FILES} files.")
                yield str(path), status


def _is_seen(path: PurePosixPath, status: os.stat_result, rules: Ignore) -> bool:
    is_file = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
    hidden = rules.reason(path.name, is_folder=False) or secret_by_name(path)
    return is_file and not hidden


def _listed(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Return what a folder holds; what cannot be looked at, or has gone, is not there."""
    found: list[tuple[str, os.stat_result]] = []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                try:
                    found.append((entry.name, entry.stat(follow_symlinks=False)))
                except OSError:
                    continue
    except OSError:
        return found
    return sorted(found, key=lambda item: item[0])


def _folder_left_out(folder: Path, rules: Ignore) -> bool:
    name = folder.name
    return (
        name in _LEFT_OUT
        or secret_folder(name) is not None
        or rules.reason(name, is_folder=True) is not None
        or any((folder / marker).exists() for marker in MARKERS)
    )


def _target(link: Path) -> str | None:
    try:
        return str(link.readlink())
    except OSError:
        return None


def _content(path: Path, status: os.stat_result, room: int) -> bytes | None:
    """Return a file's bytes; None where it cannot be read, or holds a secret."""
    if status.st_size > room:
        raise ProvingError("The workspace's files do not fit into the sandbox's memory.")
    try:
        body = read_file(path, limit=room)
    except OSError:
        return None
    text = _text(body)
    return None if text is not None and secret_in(text) else body


def _text(body: bytes) -> str | None:
    """Return what may be text as text; None for what has a zero byte near its beginning, as git."""
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return body.decode("utf-16", "replace")
    return None if b"\0" in body[:_HEAD] else body.decode("utf-8", "replace")
