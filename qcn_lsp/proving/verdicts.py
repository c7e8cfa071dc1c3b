"""Whether a sandbox holds on this machine, kept for an hour.

A verdict is of one kernel, one version of the sandbox's program, one user and one suite of attacks;
when any of them changes it is of no use. A file that is damaged, foreign or too old is none.
"""

import contextlib
import functools
import importlib.resources
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from qcn_lsp.proving.attacks import ATTACKS, Result

LIFE_SECONDS = 3600.0


@dataclass(frozen=True)
class Verdict:
    """How each attack ended in a sandbox of `builder`'s; `problem`: why there were none."""

    builder: str
    version: str
    results: Mapping[str, Result]
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Return whether every attack was made, and held."""
        return not self.problem and not self._open

    @property
    def _open(self) -> list[str]:
        """Return the attacks that did not fail, or were not made."""
        names = [attack.name for attack in ATTACKS]
        return [name for name in names if self.results.get(name) is not Result.HELD]

    @property
    def sentence(self) -> str:
        """Return what to tell the user."""
        if self.problem:
            return self.problem
        if self._open:
            made = [name for name in self._open if name in self.results]
            shown = ", ".join(name.replace("_", " ") for name in made or self._open)
            return f"{self.builder} {self.version} does not hold on this machine against: {shown}."
        return f"{self.builder} {self.version} holds against all {len(ATTACKS)} attacks."


class Verdicts:
    """The verdicts of this user, in a file only the user may read."""

    def __init__(self, folder: Path | None = None) -> None:
        import platformdirs

        own = folder or platformdirs.user_cache_path("qcn", appauthor=False)
        self._path = own / "proving.json"

    def get(self, builder: str, version: str) -> Verdict | None:
        """Return a verdict of the last hour that still applies."""
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))[builder]
            if known["of"] != _of(version) or not 0 <= time.time() - known["at"] < LIFE_SECONDS:
                return None
            results = {str(name): Result(end) for name, end in known["results"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return Verdict(builder, version, results)

    def put(self, verdict: Verdict) -> None:
        """Keep a verdict; where nothing can be kept it is found again next time."""
        entry = {"of": _of(verdict.version), "at": time.time(), "results": dict(verdict.results)}
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            known = {}
        known = known if isinstance(known, dict) else {}
        new = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(known | {verdict.builder: entry}, file)
            new.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)


def _of(version: str) -> list[str]:
    return [version, platform.release(), str(os.getuid()), _suite()]


@functools.cache
def _suite() -> str:
    """Return a digest of the sandbox's and the attacks' own code."""
    files = sorted(
        importlib.resources.files("qcn_lsp.proving").iterdir(), key=lambda file: file.name
    )
    sources = [file.read_bytes() for file in files if file.name.endswith(".py")]
    return blake2b(b"\0".join(sources), digest_size=16).hexdigest()
