"""A view: one copy of a workspace, in one sandbox."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qcn_lsp.proving import touching
from qcn_lsp.proving.deploy import Deployed, checked_path, digest, is_below
from qcn_lsp.proving.logs import plain
from qcn_lsp.proving.outcomes import MIB, Change, EndedBy, Limits, ProvingError, Run, TestOutcome
from qcn_lsp.proving.reports import Names, by_test
from qcn_lsp.proving.room import environment
from qcn_lsp.proving.sandbox import Sandbox
from qcn_lsp.proving.suites import TestSuite
from qcn_lsp.proving.toolchains import Toolchain

MAX_REPORT = 32 * MIB
MAX_CHANGED_FILE = 256 * 1024
MAX_CHANGED_TOTAL = 16 * MIB
PATIENCE = 60.0  # seconds, for what does not run the project's code


class View:
    """A copy of a workspace in which commands are run, one after the other.

    What one writes, the next one finds; no process outlives its command. Every method raises
    `ProvingError` when the sandbox is gone or the path leads out of the copy.
    """

    def __init__(self, box: Sandbox, deployed: Deployed, tools: Toolchain) -> None:
        self._box = box
        self._deployed = deployed
        self._tools = tools
        self._runs = 0

    @property
    def root(self) -> Path:
        """Return the copy's path in the sandbox, which is the workspace's."""
        return self._box.room.root

    @property
    def limits(self) -> Limits:
        """Return what the sandbox may use."""
        return self._box.room.limits

    async def write(self, path: str, text: str) -> None:
        """Put a file (an exploit test, say) into the copy, by its path below the root."""
        await self._put(str(self.root / checked_path(path)), text)

    async def _put(self, path: str, text: str) -> None:
        await self._box.tell("put", text.encode("utf-8", "surrogateescape"), path=path, mode=0o644)

    async def run(self, argv: Sequence[str], *, seconds: float | None = None) -> Run:
        """Run a command in the copy's root; `seconds` shortens the limit."""
        limit = min(seconds or self.limits.seconds, self.limits.seconds)
        variables = environment(self._tools.path) | self._tools.variables
        exit_code, ended_by, output = await self._box.run(argv, variables, limit)
        return Run(exit_code, plain(output), EndedBy(ended_by) if ended_by else None)

    async def run_tests(
        self,
        suite: TestSuite,
        *,
        changed: Mapping[str, Collection[int]] | None = None,
        seconds: float | None = None,
    ) -> TestOutcome:
        """Run tests; `changed` (path to line numbers from 1) asks which of them touch those."""
        for path in suite.only:
            checked_path(path)
        self._runs += 1
        report = f"/tmp/qcn-report-{self._runs}.xml"  # never that of an earlier run
        command = suite.command(self._tools, report)
        measured = bool(changed) and suite.runner == "pytest" and touching.has_coverage(self._tools)
        if measured:
            await self._put(touching.CONFIG, touching.CONFIG_TEXT)
            command = touching.measured(command)
        run = await self.run(command, seconds=seconds)
        if not suite.names_tests:
            return TestOutcome(run, named=False)
        written = await self._read(report) if suite.writes_report else None
        names = by_test(suite.runner, written, run.log) or Names()
        tests = names.passed | names.failed
        found, how = None, ""
        if changed and measured:
            found, how = await self._by_coverage(changed, tests), "coverage"
        if changed and found is None and suite.runner in ("pytest", "unittest"):
            found, how = await self._by_imports(changed, tests), "imports"
        sets = (frozenset(names.passed), frozenset(names.failed), frozenset(names.skipped))
        return TestOutcome(run, True, *sets, touching=found, touching_by=how)

    async def _by_coverage(
        self, changed: Mapping[str, Collection[int]], tests: set[str]
    ) -> frozenset[str] | None:
        made = await self.run(touching.report_command(self._tools))
        report = await self._read(touching.REPORT) if made.succeeded else None
        return None if report is None else touching.by_coverage(report, changed, tests)

    async def _by_imports(
        self, changed: Mapping[str, Collection[int]], tests: set[str]
    ) -> frozenset[str]:
        modules = {test.partition("[")[0] for test in tests}
        files = [
            path
            for path in self._deployed.files
            if path.endswith(".py")
            and any(test.startswith(f"{touching.module(path)}.") for test in modules)
        ]
        texts = {path: await self._read(str(self.root / path)) or b"" for path in files}
        return touching.by_imports(
            changed, tests, {path: text.decode("utf-8", "replace") for path, text in texts.items()}
        )

    async def _read(self, path: str) -> bytes | None:
        """Return a file of the sandbox; None where there is none, or it is too long."""
        answer, body = await self._box.ask(
            "read", most=MAX_REPORT, patience=PATIENCE, path=path, file_bytes=MAX_REPORT
        )
        return body if answer.get("found") else None

    async def changes(self) -> tuple[Change, ...]:
        """Return how the copy differs from the workspace with the edits it was deployed with."""
        answer, body = await self._box.ask(
            "changes",
            most=MAX_CHANGED_TOTAL,
            patience=PATIENCE,
            file_bytes=MAX_CHANGED_FILE,
            total_bytes=MAX_CHANGED_TOTAL,
        )
        if answer.get("more"):
            raise ProvingError(f"More files than can be told were changed ({answer['more']} more).")
        try:
            return tuple(self._told(answer["files"], body))
        except (KeyError, TypeError) as error:
            raise ProvingError("The sandbox gave no answer that makes sense.") from error

    def _told(self, files: list[dict[str, Any]], body: bytes) -> Iterator[Change]:
        """Yield what has another content than it was deployed with; a link or pipe has none."""
        start = 0
        for file in files:
            path = str(file["path"])
            if not is_below(path):
                raise KeyError(path)
            if file["size"] is None:
                yield Change(path, None, deleted=True)
                continue
            content = body[start : start + file["size"]] if file["text"] else None
            start += file["size"]
            if content is None or digest(content) != self._deployed.files.get(path):
                yield Change(path, _text(content))


def _text(content: bytes | None) -> str | None:
    try:
        return None if content is None else content.decode("utf-8")
    except UnicodeDecodeError:
        return None
