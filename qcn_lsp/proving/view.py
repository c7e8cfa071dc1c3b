"""A view: one copy of a workspace, in one sandbox."""

from collections.abc import Collection, Mapping, Sequence

from qcn_lsp.proving.outcomes import Change, Run, TestOutcome
from qcn_lsp.proving.suites import TestSuite


class View:
    """A copy of a workspace in which commands are run, one after the other.

    What one writes, the next one finds; no process outlives its command. Every method raises
    `ProvingError` when the sandbox is gone or the path leads out of the copy.
    """

    async def write(self, path: str, text: str) -> None:
        """Put a file (an exploit test, say) into the copy, by its path below the root."""
        raise NotImplementedError

    async def run(self, argv: Sequence[str], *, seconds: float | None = None) -> Run:
        """Run a command in the copy's root; `seconds` shortens the limit."""
        raise NotImplementedError

    async def run_tests(
        self,
        suite: TestSuite,
        *,
        changed: Mapping[str, Collection[int]] | None = None,
        seconds: float | None = None,
    ) -> TestOutcome:
        """Run tests; `changed` (path to line numbers from 1) asks which of them touch those."""
        raise NotImplementedError

    async def changes(self) -> tuple[Change, ...]:
        """Return how the copy differs from the workspace with the edits it was deployed with."""
        raise NotImplementedError
