"""`qcn fix FINDING|PATH`: fixes of findings with their evidence, as a diff, or written.

Exit codes: 0 each finding has a fix, 1 one has none, or there was an error, 2 wrong usage, 3 a file
or a folder below the one named could not be scanned; the others are fixed all the same.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from qcn_indexer.files import NotAFileError, TooLongError
from qcn_indexer.languages import language_of
from qcn_indexer.open_files import withheld
from qcn_indexer.read import BINARY, Unfit, read_text
from qcn_indexer.secrets import looks_secret
from qcn_indexer.walk import Skipped, walk

from qcn_lsp.commands.console import make_console, progress_on
from qcn_lsp.commands.errors import CommandError
from qcn_lsp.commands.scan import INCOMPLETE, name_from_here, not_scanned
from qcn_lsp.commands.workspace import workspace_of
from qcn_lsp.engine.link import EngineLink
from qcn_lsp.engine.runtime import EMBEDDED_MODEL
from qcn_lsp.fixes.attempts import CAPABLE, Outcome, Search
from qcn_lsp.fixes.callers import surroundings
from qcn_lsp.fixes.candidate import Subject, unified
from qcn_lsp.fixes.trial import Trials
from qcn_lsp.fixes.words import level_words, no_fix, unchecked_words
from qcn_lsp.fixes.write import MAX_BYTES, NotTextError, NotWritten, SourceFile
from qcn_lsp.positions import split_lines
from qcn_lsp.proving import ProvingGround
from qcn_lsp.scan.finding import Finding
from qcn_lsp.scan.reports import printable
from qcn_lsp.scan.scanner import languages, scan_text
from qcn_lsp.settings import EngineSettings

SIDE_BY_SIDE = os.cpu_count() or 1  # files with findings that are worked on at once
MOST_READ = 64  # files that are held at once
NO_MODEL = f"{EMBEDDED_MODEL} only completes code; {CAPABLE} (--model or --engine-url)"


class NotReadError(Exception):
    """A file cannot be read, or is no text that can be written back; str() says why."""


@dataclass(frozen=True)
class Spot:
    """Where a finding is: line and column count from 1. Without a column, the line's findings.

    `rule`: that one's alone.
    """

    line: int
    column: int | None = None
    rule: str | None = None


@dataclass(frozen=True)
class Wanted:
    """What is asked for: all findings below a path, or the one at a place in a file."""

    path: Path
    spot: Spot | None
    apply: bool = False
    exploit: bool = False
    model: str = EMBEDDED_MODEL
    beside: str | None = None


@dataclass(frozen=True)
class Means:
    """What all files share: the way to a model, if any, and the proving ground, found once."""

    link: EngineLink | None
    find: Callable[[], Awaitable[ProvingGround]]
    show: Callable[[str, int | None], None] = lambda activity, percentage: None


@dataclass(frozen=True)
class File:
    """A file that is meant: its repository, its path in that, what it is called, and its text."""

    root: Path
    path: PurePosixPath
    name: str  # from the current folder, as `qcn scan` calls it
    source: SourceFile


@dataclass(frozen=True)
class Done:
    """A finding, its line in the file as it was read, and what came of the search for a fix."""

    line: int
    finding: Finding
    outcome: Outcome


def run(
    what: str,
    options: Mapping[str, Any],
    *,
    model: str,
    beside: str | None,
    apply: bool,
    exploit: bool,
    as_json: bool,
) -> int:
    """Look for fixes, print them as a diff with their evidence, and write them if asked to.

    Returns an exit code.
    """
    wanted = Wanted(*parse(what), apply=apply, exploit=exploit, model=model, beside=beside)
    return asyncio.run(fixed(wanted, options, as_json=as_json))


def parse(what: str) -> tuple[Path, Spot | None]:
    """Return the path that FINDING|PATH names, and the place in it; its name may hold colons."""
    if Path(what).exists() or Path(what).is_symlink():
        return Path(what), None
    path, _, rest = what.rpartition(":")
    if (number := _number(rest)) and Path(path).exists():
        return Path(path), Spot(number)
    above, _, line = path.rpartition(":")
    if above and (number := _number(line)):
        column = _number(rest)
        return Path(above), Spot(number, column, None if column else rest)
    raise CommandError(
        f"{what}: no such file, and no finding: FILE:LINE, FILE:LINE:COL or FILE:LINE:RULE, as of "
        "`qcn scan`"
    )


def _number(text: str) -> int | None:
    """Read a line's or column's number; None where it is none."""
    return int(text) or None if text.isascii() and text.isdigit() else None


async def fixed(wanted: Wanted, options: Mapping[str, Any], *, as_json: bool) -> int:
    """Do what `run` says; one file's findings in turn, as many files at once as there are cores."""
    told: list[dict[str, Any]] = []
    all_done: list[Done] = []
    failed: list[tuple[str, str]] = []
    lost = 0  # fixes in files that could not be written
    async with _model(wanted, options) as link:
        means = Means(link, cache(lambda: asyncio.create_task(ProvingGround.find())))
        batches = _batches(wanted, failed)
        while found := await _next(wanted, means, batches):
            for file, (text, done) in found:
                source = file.source
                all_done += done
                diff = unified(file.path, source.text, text) if text != source.text else ""
                written = wanted.apply and bool(diff) and _is_written(source, text)
                if wanted.apply and not written:
                    lost += _count_fixed(done)
                if as_json:
                    told.append(_plain(source.path, done, diff, written))
                else:
                    print(diff, end="", flush=True)
                    for one in done:
                        print(_line(file.name, one), file=sys.stderr)
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
    for name, why in failed:
        print(f"qcn: {not_scanned(name, why)}", file=sys.stderr)
    if not all_done and (spot := wanted.spot) is not None:
        what = spot.rule or (f"column {spot.column}" if spot.column else "the whole line")
        raise CommandError(f"{wanted.path}:{spot.line}: no finding there ({what})")
    fixed = _count_fixed(all_done) - lost
    print(_summary(all_done, fixed, wanted), file=sys.stderr)
    if failed:
        return INCOMPLETE
    return 0 if fixed == len(all_done) else 1


async def _next(
    wanted: Wanted, means: Means, batches: Iterator[list[File]]
) -> list[tuple[File, tuple[str, list[Done]]]]:
    """Fix the next batch, which is shown while it lasts; return nothing where there is none."""
    console = make_console(stderr=True)
    with progress_on(console) as show:
        if console.is_terminal:
            show("Looking for findings", None)
        batch = next(batches, [])
        results = await _side_by_side(wanted, replace(means, show=show), batch)
    return list(zip(batch, results, strict=True))


@asynccontextmanager
async def _model(wanted: Wanted, options: Mapping[str, Any]) -> AsyncIterator[EngineLink | None]:
    """The way to a model that chats, or None where only the embedded one is named."""
    settings = EngineSettings(**options.get("engine", {}))
    link = None
    if settings.url is not None or wanted.model != EMBEDDED_MODEL:
        link = EngineLink(
            settings, wanted.model, on_status=lambda status: None, beside=wanted.beside
        )
    try:
        yield link
    finally:
        if link is not None:
            await link.close()


def _batches(wanted: Wanted, failed: list[tuple[str, str]]) -> Iterator[list[File]]:
    """Yield the files that are meant, in their order: as many with findings as there are cores.

    Nothing is written while a batch is worked on, so what its tests see does not change below them.
    What cannot be read is added to `failed`, with its reason.
    """
    batch: list[File] = []
    weak = 0
    for file in _files(wanted.path, failed):
        batch.append(file)
        text = file.source.text
        weak += any(_chosen(wanted, text, one) for one in _scan(text, file.path))
        if weak == SIDE_BY_SIDE or len(batch) == MOST_READ:
            yield batch
            batch, weak = [], 0
    if batch:
        yield batch


async def _side_by_side(
    wanted: Wanted, means: Means, batch: Sequence[File]
) -> list[tuple[str, list[Done]]]:
    """Fix several files at once, each in what is on the disk of the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_fix(wanted, means, file)) for file in batch]
    return [task.result() for task in tasks]


async def _fix(wanted: Wanted, means: Means, file: File) -> tuple[str, list[Done]]:
    """Fix the findings of one text, each in what the fixes before it have made of the text."""
    path, text = file.path, file.source.text
    asked = _scan(text, path)
    done: list[Done] = []
    passed: set[tuple[str, str]] = set()  # findings without a fix: rule and line, as text
    while True:
        finding = next(
            (
                one
                for one in _scan(text, path)
                if _chosen(wanted, text, one) and (one.rule, _at(text, one)) not in passed
            ),
            None,
        )
        if finding is None:
            return text, done
        outcome = await _search(wanted, means, file, Subject(path, text, finding))
        done.append(Done(_line_asked(file.source.text, asked, text, finding), finding, outcome))
        if outcome.accepted is None:
            passed.add((finding.rule, _at(text, finding)))
        else:
            text = outcome.accepted.candidate.text
        if wanted.spot is not None:
            return text, done


async def _search(wanted: Wanted, means: Means, file: File, subject: Subject) -> Outcome:
    root = file.root
    reason = withheld(root, subject.path) or looks_secret(subject.path, subject.text)
    if means.link is None:
        reason = NO_MODEL
    search = Search(
        _scan,
        chats=None if reason else means.link,
        no_model=reason or "",
        trials=Trials(means.find, root, subject, {}),
        exploit=wanted.exploit,
        report=lambda activity: means.show(f"{printable(file.name)}: {activity}", None),
    )
    around = None if reason else await asyncio.to_thread(surroundings, root, subject, {})
    return await search.run(subject, around)


def _files(path: Path, failed: list[tuple[str, str]]) -> Iterator[File]:
    """Yield the file that is named, or those that a scan of the folder looks at."""
    if path.is_symlink():
        raise CommandError(f"{path} is a link: name the file or folder that it leads to")
    try:
        whole = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise CommandError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    root = workspace_of(whole / "any" if whole.is_dir() else whole)
    below = PurePosixPath(whole.relative_to(root).as_posix())
    if not whole.is_dir():
        name = name_from_here(path)
        try:
            yield File(root, below, name, _read(whole))
        except NotReadError as why:
            raise CommandError(not_scanned(name, str(why))) from why
        return
    for one in walk(root, [below]):
        inside = one.path.is_relative_to(below)  # else a folder above keeps all of it out
        name = name_from_here(path / one.path.relative_to(below) if inside else path)
        if isinstance(one, Skipped):
            if one.unread:
                failed.append((name, one.reason))
        elif language_of(one.path.name) in languages():
            try:
                if source := _read_unless_skipped(root / one.path):
                    yield File(root, one.path, name, source)
            except NotReadError as why:
                failed.append((name, str(why)))


def _read_unless_skipped(path: Path) -> SourceFile | None:
    """Read a file of a folder, but none that a scan of the folder leaves out by what it holds."""
    judged = read_text(path, with_secrets=True)
    if judged == Unfit(BINARY):  # no text either, so not for `_read` to tell
        return None
    source = _read(path)
    return None if isinstance(judged, Unfit) else source


def _read(path: Path) -> SourceFile:
    try:
        return SourceFile.read(path)
    except NotAFileError as error:
        raise NotReadError("it is no ordinary file") from error
    except TooLongError as error:
        raise NotReadError(f"it is larger than {MAX_BYTES >> 20} MiB") from error
    except OSError as error:
        raise NotReadError(f"it cannot be read: {error.strerror or error}") from error
    except NotTextError as why:
        raise NotReadError(str(why)) from why


def _is_written(source: SourceFile, text: str) -> bool:
    """Write a file, if that is possible; else it stays as it is, and why is told."""
    try:
        source.replace(text)
    except NotWritten as reason:
        print(f"qcn: {reason}", file=sys.stderr)
        return False
    except OSError as error:
        why = f"{source.path} cannot be written: {error.strerror or error}"
        print(f"qcn: {why}. It is left as it is", file=sys.stderr)
        return False
    return True


def _scan(text: str, path: PurePosixPath) -> Sequence[Finding]:
    return scan_text(text, language_of(path.name))


def _chosen(wanted: Wanted, text: str, finding: Finding) -> bool:
    if (spot := wanted.spot) is None:
        return True
    before = split_lines(text[: finding.start])
    line, column = len(before), len(before[-1]) + 1
    return line == spot.line and spot.column in (None, column) and spot.rule in (None, finding.rule)


def _at(text: str, finding: Finding) -> str:
    before, behind = split_lines(text[: finding.start]), split_lines(text[finding.start :])
    return (before[-1] + behind[0]).strip()


def _line_asked(before: str, asked: Sequence[Finding], text: str, finding: Finding) -> int:
    """Return the line, from 1, that a finding in `text` had in the text `before` any fix.

    Findings are fixed from the top, so lines are counted from the end. Where a fix has changed what
    stands below, too, it is the nearest place at which the same rule found something before.
    """
    line = len(split_lines(before)) - len(split_lines(text[finding.start :])) + 1
    places = (len(split_lines(before[: one.start])) for one in asked if one.rule == finding.rule)
    return min(places, key=lambda place: abs(place - line), default=line)


def _line(name: str, done: Done) -> str:
    """What is told of a finding: its place, and the evidence or what was tried."""
    head = f"{printable(name)}:{done.line}:{done.finding.rule}: "
    if (accepted := done.outcome.accepted) is None:
        if done.outcome.no_model == NO_MODEL:  # told once, at the end
            return head + "\n  ".join(no_fix(replace(done.outcome, no_model="")))
        return head + "\n  ".join(no_fix(done.outcome))
    unchecked = unchecked_words(accepted.evidence)
    tail = f"\n  not checked: {unchecked}" if unchecked else ""
    return f"{head}fixed by {accepted.candidate.origin}: {level_words(accepted.evidence)}{tail}"


def _count_fixed(done: Sequence[Done]) -> int:
    return sum(one.outcome.accepted is not None for one in done)


def _summary(done: Sequence[Done], fixed: int, wanted: Wanted) -> str:
    """Return in sentences how many findings have a fix, whether it is written, and what lacks."""
    if not done:
        return "no findings"
    count = f"{fixed} of {len(done)} finding{'s' * (len(done) > 1)}"
    if wanted.apply:
        sentences = [f"Fixed {count}."]
    else:
        sentences = [f"Found fixes of {count}{'; --apply writes them' * bool(fixed)}."]
    if any(one.outcome.no_model == NO_MODEL for one in done):
        sentences.append(f"No model was asked for the rest: {NO_MODEL}.")
    return " ".join(sentences)


def _plain(path: Path, done: Sequence[Done], diff: str, written: bool) -> dict[str, Any]:
    return {
        "file": str(path),
        "written": written,
        "diff": diff,
        "findings": [_plain_finding(one) for one in done],
    }


def _plain_finding(done: Done) -> dict[str, Any]:
    finding, accepted = done.finding, done.outcome.accepted
    evidence = accepted.evidence if accepted else None
    tests = evidence.tests if evidence else None
    return {
        "line": done.line,
        "rule": finding.rule,
        "cwe": finding.cwe,
        "message": finding.message,
        "level": evidence.level.name.lower() if evidence else None,
        "by": accepted.candidate.origin if accepted else None,
        "tests": {"passed": tests.passed, "touching": tests.touching} if tests else None,
        "unchecked": list(evidence.unchecked) if evidence else [],
        "refused": [
            {"by": one.origin, "reason": one.refusal.reason, "sentence": one.refusal.sentence}
            for one in done.outcome.tried
        ],
        "no_model": done.outcome.no_model,
    }
