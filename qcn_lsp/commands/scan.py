"""`qcn scan [PATH...]`: weaknesses and secrets in folders and files.

Exit codes: 0 nothing was found, 1 something was (of the severity asked for), 2 wrong usage, 3 a
path or a file could not be scanned; what was found elsewhere is told all the same.
"""

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from qcn_indexer.languages import language_of
from qcn_indexer.read import BINARY, Text, read_text
from qcn_indexer.walk import EMPTY_FILE, Found, Skipped, walk

from qcn_lsp.commands.console import Show, make_console, progress_on
from qcn_lsp.scan.finding import Severity
from qcn_lsp.scan.process import ScanFailed, ScanProcess
from qcn_lsp.scan.reports import FORMATS, Report, ScannedFile, printable

FOUND, INCOMPLETE = 1, 3

_FILES_PER_PROCESS = 20  # fewer are not worth the start of another
_SEVERITIES = [Severity.NOTE, Severity.WARNING, Severity.ERROR]


def run(paths: Sequence[Path], format_: str, fail_on: str) -> int:
    """Scan, print what was found in the format asked for, and return the exit code."""
    console = make_console(stderr=True)
    with progress_on(console) as show:
        told = show if console.is_terminal else None
        report = asyncio.run(scan(paths or [Path()], told))
    sys.stdout.write(FORMATS[format_](report))
    for path, why in report.failed:
        print(f"qcn: {not_scanned(path, why)}", file=sys.stderr)
    if report.failed:
        return INCOMPLETE
    enough = _SEVERITIES[_SEVERITIES.index(Severity(fail_on)) :]
    return FOUND if any(finding.severity in enough for _, finding in report.findings) else 0


def not_scanned(name: str, why: str) -> str:
    """Return what is told of a path that could not be looked at."""
    return f"{printable(name)} was not scanned: {printable(why)}"


async def scan(paths: Sequence[Path], show: Show | None = None) -> Report:
    """Scan what lies at and below some paths, on as many cores as there are."""
    if show:
        show("Looking for files", None)
    skipped: list[tuple[str, str]] = []
    failed: list[tuple[str, str]] = []
    files = list(dict.fromkeys(_files(paths, skipped, failed)))
    named = frozenset(paths)
    scanned: dict[Path, ScannedFile] = {}
    left = iter(enumerate(files))

    async def work() -> None:
        process = ScanProcess()
        try:
            for number, path in left:  # shared: each file goes to who is free
                if show:
                    show(f"Scanning {len(files):,} files", 100 * number // len(files))
                await one(process, path)
        finally:
            await process.close()

    async def one(process: ScanProcess, path: Path) -> None:
        name = name_from_here(path)
        read = read_text(path, with_secrets=True)
        if not isinstance(read, Text):
            missed = read.unread or (path in named and not _is_no_source(path, read.reason))
            (failed if missed else skipped).append((name, read.reason))
            return
        try:
            found = await process.scan(read.text, language_of(path.name) or "")
        except ScanFailed as why:
            failed.append((name, str(why)))
            return
        scanned[path] = ScannedFile(path, name, read.text, found)

    workers = min(os.cpu_count() or 1, -(-len(files) // _FILES_PER_PROCESS))
    await asyncio.gather(*(work() for _ in range(workers)))
    in_order = [scanned[path] for path in files if path in scanned]
    return Report(in_order, skipped, failed, metadata.version("qcn-lsp"))


def _is_no_source(path: Path, reason: str) -> bool:
    """Whether a file is left out because it holds none: `qcn scan *` may meet a picture."""
    return reason == EMPTY_FILE or (reason == BINARY and language_of(path.name) is None)


def _files(
    paths: Sequence[Path], skipped: list[tuple[str, str]], failed: list[tuple[str, str]]
) -> Iterator[Path]:
    """Yield the files to scan; those named themselves whatever any ignore rule says."""
    for path in paths:
        try:
            path.lstat()
            is_folder = path.is_dir()
        except OSError as error:
            gone = isinstance(error, FileNotFoundError | NotADirectoryError)
            why = "there is no such file or folder"
            failed.append((str(path), why if gone else f"it cannot be read: {error.strerror}"))
            continue
        if is_folder:
            for item in walk(path):
                if isinstance(item, Found):
                    yield path / item.path
                elif isinstance(item, Skipped) and item.reason != EMPTY_FILE:
                    told = failed if item.unread else skipped
                    told.append((name_from_here(path / item.path), item.reason))
        else:
            yield path


def name_from_here(path: Path) -> str:
    """Return what a file is called from here: its path below this folder, or else from the top."""
    whole, here = Path(os.path.normpath(path.absolute())), Path.cwd()
    return (whole.relative_to(here) if whole.is_relative_to(here) else whole).as_posix()
