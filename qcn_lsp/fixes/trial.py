"""The upper levels of the ladder: the project's tests, and an exploit test, in the proving ground.

The baseline comes first: tests that fail, or do not end, without the change say nothing about it.
It is run once for all candidates of one finding.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from qcn_lsp.fixes.candidate import Candidate, Subject
from qcn_lsp.fixes.checks import changed_lines
from qcn_lsp.fixes.evidence import Evidence, Level, Tests
from qcn_lsp.fixes.ladder import without_tests
from qcn_lsp.fixes.refusal import Reason, Refusal
from qcn_lsp.proving.deploy import without_hidden
from qcn_lsp.proving.outcomes import EndedBy, ProvingError, Run, TestOutcome
from qcn_lsp.proving.suites import TestSuite, find_suites
from qcn_lsp.proving.view import View

LOG = 3_000  # characters of what tests printed, from the end: failures are told last
# How a test would look at the source, or at the compiled code.
_LOOKS = (
    *("inspect", "getsource", "read_text", "read_bytes", "open(", "__file__", "tokenize"),
    *("import ast", "co_code", "co_names", "readFile", "createReadStream", "import.meta.url"),
)
_NO_PYTEST = "No module named pytest"
LAST_LINE = 120  # characters of a log's last line that are told
# By the ending of what is fixed: the runner of an exploit test, and the beginning and end of the
# file's name.
_EXPLOITS = {
    ".py": ("pytest", "test_qcn_exploit", ".py"),
    ".js": ("node", "qcn_exploit", ".test.mjs"),
    ".mjs": ("node", "qcn_exploit", ".test.mjs"),
    ".cjs": ("node", "qcn_exploit", ".test.mjs"),
}
EXPLOITABLE = frozenset(_EXPLOITS)
NAMED = 3  # broken tests that a refusal names


class Ground(Protocol):
    """A proving ground, as `qcn_lsp.proving.ProvingGround` is one."""

    @property
    def holds(self) -> bool:
        """Whether anything may be run."""
        ...

    @property
    def reason(self) -> str:
        """Why nothing holds."""
        ...

    def deploy(self, root: Path, edits: Mapping[str, str]) -> AbstractAsyncContextManager[View]:
        """Copy the workspace with these files' new texts."""
        ...


class Trials:
    """Runs a project's tests for the candidates of one subject.

    `find` finds the proving ground, which takes seconds, once it is needed. `texts` are open
    buffers: those of ignored files and secrets are not shown to the tests, as on the disk.
    `seconds` ends one run of the tests before the ground's limit does.
    """

    def __init__(
        self,
        find: Callable[[], Awaitable[Ground]],
        root: Path,
        subject: Subject,
        texts: Mapping[str, str],
        *,
        seconds: float | None = None,
    ) -> None:
        self._seconds = seconds
        self._find, self._root, self._subject = find, root, subject
        self._found: Ground | None = None
        self._texts = texts
        self._seen: Mapping[str, str] | None = None  # of them
        self._suite: TestSuite | None = None
        self._baseline: TestOutcome | str | None = None

    async def tested(self, candidate: Candidate, evidence: Evidence) -> Evidence | Refusal:
        """Return the evidence with what the project's tests say of the candidate.

        A candidate that has not shown that the finding is gone gets no higher level by them.
        """
        try:
            baseline = await self._baseline_once()
            if isinstance(baseline, str):
                return without_tests(evidence, baseline)
            changed = set(changed_lines(self._subject.text, candidate.text))
            outcome = await self._run(candidate.text, changed)
        except ProvingError as problem:
            return without_tests(evidence, str(problem))
        if refusal := _broken(baseline, outcome):
            return refusal
        touching = None
        if outcome.touching is not None:
            touching = len(outcome.touching & outcome.passed)
        passed = len(baseline.passed & outcome.passed) if outcome.named else 0
        unchecked = list(evidence.unchecked)
        if touching is None:
            unchecked.append("whether a test runs the changed lines")
        elif touching == 0:
            unchecked.append("the changed lines by any test: none runs them")
        if still := len(baseline.failed):
            unchecked.append(f"{still} tests that fail without the change too")
        level = Level.TESTS if evidence.level >= Level.GONE else evidence.level
        return replace(
            evidence, level=level, tests=Tests(passed, touching), unchecked=tuple(unchecked)
        )

    async def exploited(
        self, candidate: Candidate, evidence: Evidence, test: str
    ) -> Evidence | Refusal:
        """Return the evidence with what an exploit test (a file's text) says of both texts.

        It is one for pytest, or for Node's own runner. Raises `UnfitExploit` when the test does not
        fail before: it shows nothing then.
        """
        if (unfit := unfit_exploit(test)) is not None:
            raise UnfitExploit(unfit)
        runner, *ends = _EXPLOITS[self._subject.path.suffix]
        name = _free_name(self._root, *ends)
        suite = TestSuite(runner, (name,))
        before = await self._run_exploit(self._subject.text, suite, name, test)
        if (limit := before.run.ended_by) is not None:
            why = f"the test does not end without the change (limit: {limit})"
            raise UnfitExploit(why, _log(before.run))
        if not (before.passed or before.failed):
            missing = _NO_PYTEST in before.run.log
            why = "the project's Python has no pytest" if missing else "the test does not run"
            raise UnfitExploit(why, _log(before.run))
        if any(_is_of_whole_file(one, name) for one in before.failed):
            raise UnfitExploit("the test cannot be loaded", _log(before.run))
        if before.passed:
            raise UnfitExploit("the test does not fail before the change", _log(before.run))
        after = await self._run_exploit(candidate.text, suite, name, test)
        if after.failed or not before.failed <= after.passed:
            how = "does not end" if after.run.ended_by is not None else "fails"
            detail = f"its test {how} after the change"
            return Refusal(Reason.EXPLOITABLE, detail, _log(after.run))
        level = Level.EXPLOIT if evidence.level >= Level.PARSES else evidence.level
        return replace(evidence, level=level)

    async def _baseline_once(self) -> TestOutcome | str:
        """How the tests are without the change, or why that is no baseline."""
        if self._baseline is None:
            self._baseline = await self._measured()
        return self._baseline

    async def _measured(self) -> TestOutcome | str:
        suites = await asyncio.to_thread(find_suites, self._root)
        if not suites:
            return "none were found"
        ground = await self._ground()
        if not ground.holds:
            return ground.reason
        why = ""
        for self._suite in suites:
            outcome = await self._run(self._subject.text, None)
            unfit = _no_baseline(outcome, self._suite.runner)
            if unfit is None:
                return outcome
            why = why or unfit  # of the likeliest
        return why

    async def _ground(self) -> Ground:
        if self._found is None:
            self._found = await self._find()
        return self._found

    async def _run(self, text: str, changed: set[int] | None) -> TestOutcome:
        assert self._suite is not None
        async with (await self._ground()).deploy(self._root, await self._edits(text)) as view:
            touched = None if changed is None else {str(self._subject.path): changed}
            return await view.run_tests(self._suite, changed=touched, seconds=self._seconds)

    async def _run_exploit(self, text: str, suite: TestSuite, name: str, test: str) -> TestOutcome:
        async with (await self._ground()).deploy(self._root, await self._edits(text)) as view:
            await view.write(name, test)
            return await view.run_tests(suite, seconds=self._seconds)

    async def _edits(self, text: str) -> dict[str, str]:
        """The open files, of which one has this text."""
        if self._seen is None:
            self._seen = await asyncio.to_thread(without_hidden, self._root, self._texts)
        return {**self._seen, str(self._subject.path): text}


class UnfitExploit(Exception):  # noqa: N818 - an outcome of asking a model
    """A test that shows nothing; `log` is what it printed, untrusted."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


def unfit_exploit(test: str) -> str | None:
    """Return why a test is no exploit: it looks at the source instead of running it."""
    found = next((word for word in _LOOKS if word in test), None)
    return f"the test looks at the source (`{found}`) instead of running it" if found else None


def _no_baseline(outcome: TestOutcome, runner: str) -> str | None:
    """Why tests that were run without the change can be compared with nothing, or None."""
    if outcome.run.ended_by is not None:
        return f"they do not end without the change either (limit: {outcome.run.ended_by})"
    if outcome.named and not outcome.passed:
        count = len(outcome.failed)
        what = f"none of {count} passes without the change" if count else f"{runner} ran none"
        return what + _last_words(outcome.run)
    if not outcome.named and not outcome.run.succeeded:
        return f"they fail without the change{_last_words(outcome.run)}"
    return None


def _last_words(run: Run) -> str:
    """Return the last line of a log in which something went wrong: mostly the reason; untrusted."""
    last = next((line for line in reversed(run.log.splitlines()) if line.strip()), "").strip()
    return f" ({last[:LAST_LINE]})" if last and not run.succeeded else ""


def _broken(baseline: TestOutcome, outcome: TestOutcome) -> Refusal | None:
    if outcome.run.ended_by is EndedBy.TIME:
        return Refusal(Reason.HANGS, "they did without it", _log(outcome.run))
    if outcome.run.ended_by is not None:
        detail = f"they reach the limit of {outcome.run.ended_by}"
        return Refusal(Reason.BREAKS_TESTS, detail, _log(outcome.run))
    if not baseline.named:
        failed = not outcome.run.succeeded
        return Refusal(Reason.BREAKS_TESTS, "", _log(outcome.run)) if failed else None
    lost = sorted(baseline.passed - outcome.passed)
    if lost:
        names = ", ".join(f"`{name}`" for name in lost[:NAMED])
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        return Refusal(Reason.BREAKS_TESTS, names + more, _log(outcome.run))
    return None


def _log(run: Run) -> str:
    return run.log[-LOG:]


def _is_of_whole_file(test: str, name: str) -> bool:
    """Whether what failed is the reading of a test file: pytest and node name it like a test."""
    return test.rpartition("/")[2] in (name, f".{name.removesuffix('.py')}")


def _free_name(root: Path, beginning: str, end: str) -> str:
    """A file name for the exploit test that the project does not have."""
    name, number = beginning + end, 0
    while (root / name).exists():
        number += 1
        name = f"{beginning}_{number}{end}"
    return name
