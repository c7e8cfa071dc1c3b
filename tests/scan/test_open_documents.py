"""The findings of open documents: only the newest text of each is worth a scan."""

import asyncio

import pytest

from qcn_lsp.documents import Document
from qcn_lsp.scan.finding import Finding
from qcn_lsp.scan.open_documents import DocumentFindings
from qcn_lsp.scan.process import ScanProcess


def version(number: int) -> Document:
    return Document("file:///a.py", "python", number, f"x = {number}\n")


async def test_texts_that_were_typed_over_while_another_is_scanned_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scanned: list[str] = []
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def scan(self: ScanProcess, text: str, language: str) -> tuple[Finding, ...]:
        scanned.append(text)
        begun.set()
        await goes_on.wait()
        return ()

    monkeypatch.setattr(ScanProcess, "scan", scan)
    findings = DocumentFindings()
    asked = [asyncio.ensure_future(findings.of(version(1)))]
    await begun.wait()
    asked += [asyncio.ensure_future(findings.of(version(number))) for number in range(2, 10)]
    await asyncio.sleep(0)  # each has asked
    goes_on.set()
    await asyncio.gather(*asked)
    assert scanned == ["x = 1\n", "x = 9\n"]
    await findings.close()
