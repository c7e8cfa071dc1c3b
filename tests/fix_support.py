"""What the tests of fixes share: the means to find and to judge fixes, with a scripted model.

The model is scripted and speaks HTTP. `CopyGround` runs a project's tests in a plain copy, without
a sandbox: what it runs is written in these tests. It ends a test run by the processor time it has
taken, which an endless loop uses up and a busy machine does not.
"""

import asyncio
import os
import re
import resource
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from qcn_indexer.languages import language_of
from scripted_model import ScriptedModel, scripted_model

from qcn_lsp.engine.link import EngineLink
from qcn_lsp.fixes.attempts import Outcome, Search
from qcn_lsp.fixes.candidate import Subject
from qcn_lsp.fixes.trial import Ground, Trials
from qcn_lsp.proving.outcomes import Change, EndedBy, Run, TestOutcome
from qcn_lsp.proving.suites import TestSuite
from qcn_lsp.proving.view import View
from qcn_lsp.scan.finding import Finding
from qcn_lsp.scan.scanner import scan_text
from qcn_lsp.settings import EngineSettings

CPU_SECONDS = 5
_RESULT = re.compile(r"^(PASSED|FAILED|ERROR) (\S+)", re.MULTILINE)


def scan(text: str, path: PurePosixPath) -> Sequence[Finding]:
    """The real scanner."""
    return scan_text(text, language_of(path.name))


def subject_of(text: str, path: str = "app.py") -> Subject:
    """The finding of a text that has one."""
    (found,) = scan(text, PurePosixPath(path))
    return Subject(PurePosixPath(path), text, found)


class CopyView(View):
    """A copy of a project in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def write(self, path: str, text: str) -> None:
        (self._folder / path).write_text(text)

    async def run(self, argv: Sequence[str], *, seconds: float | None = None) -> Run:
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=self._folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            preexec_fn=_limited,
            env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": ""},
        )
        output, _ = await process.communicate()
        code = process.returncode or 0
        return Run(code, output.decode(), EndedBy.TIME if code < 0 else None)

    async def run_tests(
        self,
        suite: TestSuite,
        *,
        changed: Mapping[str, Collection[int]] | None = None,
        seconds: float | None = None,
    ) -> TestOutcome:
        options = ("-q", "-rA", "-p", "no:cacheprovider", "--tb=short")
        run = await self.run((sys.executable, "-m", "pytest", *options, *suite.only))
        named: dict[str, set[str]] = {"PASSED": set(), "FAILED": set(), "ERROR": set()}
        for result, name in _RESULT.findall(run.log):
            named[result].add(name)
        passed = frozenset(named["PASSED"])
        return TestOutcome(
            run,
            named=True,
            passed=passed,
            failed=frozenset(named["FAILED"] | named["ERROR"]),
            touching=None if changed is None else frozenset(one for one in passed if "run" in one),
            touching_by="" if changed is None else "name",
        )

    async def changes(self) -> tuple[Change, ...]:
        return ()


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))


class CopyGround:
    """Copies a project for each run; `holds` and `reason` as a proving ground's."""

    def __init__(self, *, holds: bool = True, reason: str = "") -> None:
        self.holds, self.reason = holds, reason

    async def find(self) -> "CopyGround":
        return self

    @asynccontextmanager
    async def deploy(self, root: Path, edits: Mapping[str, str]) -> AsyncIterator[CopyView]:
        with TemporaryDirectory(prefix="qcn-copy-") as folder:
            copy = Path(folder, "project")
            shutil.copytree(root, copy)
            for path, text in edits.items():
                (copy / path).write_text(text)
            yield CopyView(copy)


@asynccontextmanager
async def chatting(*answers: str) -> AsyncIterator[tuple[EngineLink, ScriptedModel]]:
    """A model that gives these answers in turn, over HTTP, and the link to it."""
    async with scripted_model() as model:

        async def answer() -> None:
            for text in answers:
                (await model.asked.get()).answer(text)

        answering = asyncio.create_task(answer())
        link = EngineLink(EngineSettings(url=model.url), "scripted", on_status=lambda status: None)
        try:
            yield link, model
        finally:
            await link.close()
            answering.cancel()


async def fixed(
    subject: Subject,
    *answers: str,
    root: Path | None = None,
    exploit: bool = False,
    find: Callable[[], Awaitable[Ground]] | None = None,
) -> tuple[Outcome, ScriptedModel]:
    """What comes of a search in which the model answers so; tests run where there is a `root`.

    They run on the ground that `find` finds, or in a plain copy.
    """
    find = find or CopyGround().find
    trials = None if root is None else Trials(find, root, subject, {})
    async with chatting(*answers) as (link, model):
        search = Search(scan, chats=link, trials=trials, exploit=exploit)
        return await search.run(subject), model
