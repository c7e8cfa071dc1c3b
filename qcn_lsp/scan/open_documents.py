"""The findings of open documents: each text scanned once, off the event loop."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcn_lsp.documents import Document
from qcn_lsp.scan.finding import Finding
from qcn_lsp.scan.grammars import BY_LANGUAGE
from qcn_lsp.scan.process import ScanFailed, ScanProcess

if TYPE_CHECKING:
    from qcn_lsp.scan.review import Reviewed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Scanned:
    text: str
    language: str
    findings: "asyncio.Task[tuple[Finding, ...]]"


class DocumentFindings:
    """Asks the scanning process; remembers the answer for the last text of each document."""

    def __init__(self) -> None:
        self._process: ScanProcess | None = None
        self._scanned: dict[str, _Scanned] = {}
        self._turn = asyncio.Lock()
        self._reviews: dict[str, list[Reviewed]] = {}
        self.when_reviewed: Callable[[], None] = lambda: None
        """Called when there is a new review."""

    async def of(self, document: Document) -> tuple[Finding, ...]:
        """Return the findings of a document as it stands in this snapshot.

        Nothing for languages that no rules are for, and for a text that was typed over before its
        turn came, so that nobody waits for scans of what is no more; nothing, and a line in the
        log, where the text could not be scanned.
        """
        if document.language_id not in BY_LANGUAGE:
            return ()
        known = self._scanned.get(document.uri)
        if known and (known.text, known.language) == (document.text, document.language_id):
            return await asyncio.shield(known.findings)
        task = asyncio.ensure_future(self._scan(document))
        self._scanned[document.uri] = _Scanned(document.text, document.language_id, task)
        # Shielded: whoever asks may give up, others wait for the same.
        return await asyncio.shield(task)

    async def _scan(self, document: Document) -> tuple[Finding, ...]:
        try:
            async with self._turn:
                newest = self._scanned.get(document.uri)
                if newest is not None and newest.text == document.text:
                    return await self.in_text(document.text, document.language_id)
        except ScanFailed as reason:
            logger.warning("%s is not scanned: %s", document.uri, reason)
        except OSError as error:
            logger.error("the scanner cannot be started: %s", error)
        return ()

    async def in_text(self, text: str, language: str) -> tuple[Finding, ...]:
        """Return the findings of any text, nothing of which is kept; raises `ScanFailed`."""
        self._process = self._process or ScanProcess()
        return await self._process.scan(text, language)

    def take_review(self, uri: str, review: "Reviewed") -> None:
        """Keep what a model said of a function, in place of what it said of the same text."""
        others = [one for one in self._reviews.get(uri, ()) if one.text != review.text]
        self._reviews[uri] = [*others, review]
        self.when_reviewed()

    def reviewed(self, document: Document) -> tuple[Finding, ...]:
        """Return what a model said of functions that have not changed since."""
        reviews = self._reviews.get(document.uri, ())
        return tuple(finding for one in reviews for finding in one.at(document.text))

    def forget(self, uri: str) -> None:
        """Drop what is known of a document that was closed."""
        self._scanned.pop(uri, None)
        self._reviews.pop(uri, None)

    async def close(self) -> None:
        """End the scanning process."""
        tasks = [scanned.findings for scanned in self._scanned.values()]
        self._scanned.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._process is not None:
            await self._process.close()
