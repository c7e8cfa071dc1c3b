"""The scanning process: answers, and what happens when it hangs, ends or is planted beside."""

import asyncio
from pathlib import Path

import pytest
from deadlines import DEADLINE_SECONDS

from qcn_lsp.scan.process import ScanFailed, ScanProcess
from qcn_lsp.scan.scanner import LONGEST, scan_text
from qcn_lsp.scan.worker import read, written

TEXT = "import hashlib\nx = '\U0001f600\u2028'; hashlib.md5(x)\nimport yaml\nyaml.load(x)\n"
# Each name stands for all that follows: a chain that the rules take minutes for.
ENDLESS = "=".join(["a"] * 60_000) + "=eval(a)"


async def test_it_finds_what_scanning_here_does_text_after_text() -> None:
    process = ScanProcess(seconds=DEADLINE_SECONDS)
    try:
        for text, language in ((TEXT, "python"), ("eval(x)", "javascript"), ("", "python")):
            assert await process.scan(text, language) == scan_text(text, language)
        both = await asyncio.gather(process.scan(TEXT, "python"), process.scan("", "python"))
        assert list(both) == [scan_text(TEXT, "python"), ()]
    finally:
        await process.close()


def test_findings_travel_whole() -> None:
    found = scan_text(TEXT, "python")
    assert any(finding.fix for finding in found)
    assert read(written(found)) == found


async def test_a_text_that_takes_too_long_is_given_up_and_the_next_is_scanned() -> None:
    process = ScanProcess(seconds=0.5)
    try:
        with pytest.raises(ScanFailed, match=r"more than 0\.5 s"):
            await process.scan(ENDLESS, "python")
        process._seconds = DEADLINE_SECONDS
        assert await process.scan(TEXT, "python") == scan_text(TEXT, "python")
    finally:
        await process.close()


async def test_a_text_that_is_too_long_is_not_sent() -> None:
    process = ScanProcess()
    assert await process.scan("eval(x)\n" + "#" * LONGEST, "python") == ()
    assert process._process is None


async def test_whoever_gives_up_leaves_no_answer_for_the_next() -> None:
    process = ScanProcess(seconds=DEADLINE_SECONDS)
    try:
        await process.scan("", "python")
        asked = asyncio.ensure_future(process.scan(ENDLESS, "python"))
        await asyncio.sleep(0)  # until it has been asked
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await process.scan(TEXT, "python") == scan_text(TEXT, "python")
    finally:
        await process.close()


@pytest.mark.parametrize("asked", [False, True])
async def test_one_that_ended_is_replaced(asked: bool) -> None:
    """Only the text that it was working on, if any, has no findings: it may be the cause."""
    process = ScanProcess(seconds=DEADLINE_SECONDS)
    try:
        await process.scan("", "python")
        running = process._process
        assert running is not None
        lost = asyncio.ensure_future(process.scan(ENDLESS, "python")) if asked else None
        await asyncio.sleep(0)  # until it has been asked
        running.kill()
        await running.wait()
        if lost is not None:
            with pytest.raises(ScanFailed, match="broke off"):
                await lost
        assert await process.scan(TEXT, "python") == scan_text(TEXT, "python")
    finally:
        await process.close()


async def test_modules_of_the_current_folder_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "yaml", "ruff", "ast_grep_py", "qcn_lsp"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    process = ScanProcess(seconds=DEADLINE_SECONDS)
    try:
        assert await process.scan(TEXT, "python") == scan_text(TEXT, "python")
    finally:
        await process.close()
    assert not (tmp_path / "ran").exists()
