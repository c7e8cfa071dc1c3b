"""A file on disk whose text is replaced in one step, or not at all.

Guarantees:
- What is written is the new text in the file's own encoding, with its byte order mark, and would
  be read as just that; line ends and a missing final newline are the text's own. Mode and, where
  that is allowed, owner stay.
- The new file is complete before it takes the old one's name; a crash leaves one of the two.
- Nothing is lost: a file that is not what it was when it was read is left alone.
"""

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from qcn_indexer.files import read_file
from qcn_indexer.read import MARKS, Unfit, decoded

MAX_BYTES = 4 << 20


class NotTextError(Exception):
    """The file holds no text, or none that can be told; str() says why."""


class NotWritten(Exception):  # noqa: N818 - an outcome
    """The file was left as it is; str() says why."""


@dataclass(frozen=True)
class SourceFile:
    """A file as it was read: all its bytes, and the text that they are."""

    path: Path
    content: bytes
    mark: bytes
    encoding: str
    text: str

    @classmethod
    def read(cls, path: Path) -> "SourceFile":
        """Read an ordinary file; raises `OSError`, or `NotTextError`. Follows no link."""
        content = read_file(path, limit=MAX_BYTES)
        found = decoded(content)
        if isinstance(found, Unfit):
            raise NotTextError(found.reason)
        text, encoding = found
        mark = next((mark for mark, _ in MARKS if content.startswith(mark)), b"")
        return cls(path, content, mark, encoding, text)

    def replace(self, text: str) -> None:
        """Put `text` in the file's place; raises `NotWritten`, or `OSError`."""
        new = self._encoded(text)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}.qcn")
        status = self.path.lstat()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(new)
                file.flush()
                os.fsync(file.fileno())
                if hasattr(os, "fchown"):
                    with contextlib.suppress(PermissionError):  # another user's file
                        os.fchown(file.fileno(), status.st_uid, status.st_gid)
                temporary.chmod(status.st_mode & 0o7777)
            self._check_unchanged()
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _encoded(self, text: str) -> bytes:
        with contextlib.suppress(UnicodeEncodeError):
            new = self.mark + text.encode(self.encoding)
            read = decoded(new)
            if not isinstance(read, Unfit) and read[0] == text:
                return new
        raise NotWritten(
            f"{self.path} is in {self.encoding}, in which the fix cannot be written: save it as "
            "UTF-8 first; nothing was written"
        )

    def _check_unchanged(self) -> None:
        try:
            now = read_file(self.path, limit=MAX_BYTES)
        except OSError as error:
            raise NotWritten(f"{self.path} is not there as it was: {error}") from error
        if now != self.content:
            raise NotWritten(f"{self.path} has changed meanwhile; nothing was written")
