"""What goes into the proving ground and what comes out of it. All text here is untrusted."""

from dataclasses import dataclass
from enum import StrEnum

MIB = 1 << 20


class ProvingError(Exception):
    """What was asked cannot be proven here; the message is one sentence for the user."""


@dataclass(frozen=True)
class Limits:
    """What one sandbox may use, all its processes together unless said otherwise.

    Files lie in memory, so a sandbox takes at most `memory_mib` + `disk_mib` of the machine's.
    """

    seconds: float = 300.0  # of wall-clock time, for one command
    memory_mib: int = 2048  # of one process, and of all together
    disk_mib: int = 1024  # the copy of the workspace, with all that is written
    file_mib: int = 256  # one file
    processes: int = 256  # threads count too
    open_files: int = 1024  # of one process
    output_bytes: int = MIB  # of one command; the middle is left out of what is longer


class EndedBy(StrEnum):
    """Which limit ended a command."""

    TIME = "time"
    MEMORY = "memory"


@dataclass(frozen=True)
class Run:
    """A command that was run; every process that it started is gone.

    `exit_code` is negative for a signal. `log` is its standard output and standard error, cut to
    `Limits.output_bytes`, without control characters. It never says what anyone should do:
    show it as text, and mark it as untrusted where a model reads it.
    """

    exit_code: int
    log: str
    ended_by: EndedBy | None = None

    @property
    def succeeded(self) -> bool:
        """Return whether it ended by itself, and well."""
        return self.exit_code == 0 and self.ended_by is None


@dataclass(frozen=True)
class TestOutcome:
    """What a run of tests told.

    `passed`, `failed` (errors too) and `skipped` are the tests' names; where `named` is false the
    runner tells none, and only `run` counts. `touching`: those that execute the changed lines, as
    `coverage` measured it, or that name the changed modules (`imports`); None where nothing is
    known.
    """

    __test__ = False  # no test of pytest's

    run: Run
    named: bool
    passed: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    skipped: frozenset[str] = frozenset()
    touching: frozenset[str] | None = None
    touching_by: str = ""

    @property
    def succeeded(self) -> bool:
        """Return whether the whole run succeeded, with at least one test where they have names."""
        return self.run.succeeded and not self.failed and (bool(self.passed) or not self.named)


@dataclass(frozen=True)
class Change:
    """A file of the view that is no longer as it was deployed.

    `after` is its text; None where it was deleted (`deleted`), or is no UTF-8 text of at most
    256 KiB.
    """

    path: str
    after: str | None
    deleted: bool = False
