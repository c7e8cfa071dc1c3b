"""The files of a workspace folder whose text an engine was given, remembered over restarts.

What an engine has read it keeps on disk, under digests that do not tell of which file it is. So
that a file which becomes ignored, or a secret, while no editor is open is forgotten at the next
start, the paths are kept here: a JSON string a line, in a file of the user's alone.

There may be more of them than the engine still has, never fewer, unless nothing can be written. A
list that was of no use for longer than an engine keeps anything is removed.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import get_args

from qcn_lsp.engine.messages import Dialect

logger = logging.getLogger(__name__)

RETENTION_SECONDS = 31 * 24 * 3600.0
"""A day longer than an engine keeps what nobody uses."""


class GivenFiles:
    """The paths of one root, of which there are contexts of one dialect."""

    def __init__(self, root: Path, dialect: Dialect) -> None:
        import platformdirs

        name = hashlib.sha256(os.fsencode(f"{dialect}\0{root.resolve()}")).hexdigest()[:32]
        self._folder = platformdirs.user_cache_path("qcn", appauthor=False) / "given"
        self._file = self._folder / f"{name}.jsonl"

    def paths(self) -> frozenset[PurePosixPath]:
        """Return the paths; none where there is no list that can be read."""
        found = set()
        with contextlib.suppress(OSError):
            for line in self._file.read_bytes().splitlines():
                with contextlib.suppress(ValueError):  # the disk was full, or it is not ours
                    if isinstance(path := json.loads(line), str):
                        found.add(PurePosixPath(path))
        return frozenset(found)

    def add(self, paths: Iterable[PurePosixPath]) -> None:
        """Note paths, before their text is given to the engine."""
        new = sorted(set(paths) - self.paths())
        lines = "".join(f"{json.dumps(str(path))}\n" for path in new).encode()
        try:
            for folder in (self._folder.parent, self._folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_old()
            handle = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "ab") as file:  # windows on one root write in turns
                file.write(lines)
            os.utime(self._file)
        except OSError as error:
            logger.info("what the engine is given is not noted: %s", error)

    def forget(self) -> None:
        """Remove the list: the engine has forgotten all of it."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _remove_old(self) -> None:
        for file in self._folder.iterdir():
            with contextlib.suppress(OSError):
                if file.stat().st_mtime < time.time() - RETENTION_SECONDS:
                    file.unlink()


def forget_given(root: Path) -> None:
    """Remove what is noted of a root for engines that have forgotten all of it."""
    for dialect in get_args(Dialect):
        GivenFiles(root, dialect).forget()
