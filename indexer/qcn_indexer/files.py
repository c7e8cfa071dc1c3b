"""Opening a file that may have become anything since it was seen.

A folder's listing is a moment old. Opening a FIFO by its name waits for a writer, a device acts on
being opened, and a symbolic link may lead out of the workspace; so what is opened is looked at
before it is read, and never more is read than was asked for.
"""

import os
import stat
from pathlib import Path

# Windows has neither; there a name of this kind cannot stand for a FIFO.
_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_AS_IT_IS = getattr(os, "O_BINARY", 0)


class NotAFileError(OSError):
    """It is no ordinary file, or none any more."""


class TooLongError(OSError):
    """It holds more than was to be read."""


class ChangedError(OSError):
    """It was written to while it was read, so what was read may be half old and half new."""


def read_file(path: Path, *, limit: int, follow: bool = False) -> bytes:
    """Return all bytes of an ordinary file, at most `limit`.

    A symbolic link is followed only if `follow`. Raise one of the errors above, or `OSError`.
    """
    if not stat.S_ISREG((path.stat() if follow else path.lstat()).st_mode):
        raise NotAFileError("it is no ordinary file")
    descriptor = os.open(path, os.O_RDONLY | _NO_WAITING | _AS_IT_IS | (0 if follow else _NO_LINK))
    with os.fdopen(descriptor, "rb") as file:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise NotAFileError("it is no ordinary file")
        content = file.read(limit + 1)
        if len(content) > limit:
            raise TooLongError("it is too long")
        after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ChangedError("it changed while it was read")
    return content
