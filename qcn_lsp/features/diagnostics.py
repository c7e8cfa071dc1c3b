"""`textDocument/diagnostic`, or `publishDiagnostics` where the client does not ask: findings.

A client that can ask is never told of its own accord. To any other, each version of a document is
told once its text is scanned; versions that were typed over meanwhile are left out, so that a fast
typist waits for one scan at most.
"""

import asyncio
import logging
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from lsprotocol import types

from qcn_lsp.documents import Document
from qcn_lsp.scan.finding import Finding, Proof, Severity, identity
from qcn_lsp.uris import same_document_key

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

logger = logging.getLogger(__name__)

SOURCE = "qcn"
_SEVERITIES = {
    Severity.ERROR: types.DiagnosticSeverity.Error,
    Severity.WARNING: types.DiagnosticSeverity.Warning,
    Severity.NOTE: types.DiagnosticSeverity.Information,
}


def register(server: "QcnServer") -> None:
    """Answer the request on `server`, and tell the clients that do not ask."""
    options = types.DiagnosticOptions(
        inter_file_dependencies=False, workspace_diagnostics=False, identifier=SOURCE
    )
    pushed = PushedDiagnostics(server)
    server.when_settings_change.append(pushed.tell_anew)
    server.findings.when_reviewed = pushed.tell_anew

    @server.feature(types.TEXT_DOCUMENT_DIAGNOSTIC, options)
    async def pull(params: types.DocumentDiagnosticParams) -> types.DocumentDiagnosticReport:
        return await diagnostic(server, params)

    @server.feature(types.TEXT_DOCUMENT_DID_OPEN)
    def opened(params: types.DidOpenTextDocumentParams) -> None:
        pushed.changed(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def changed(params: types.DidChangeTextDocumentParams) -> None:
        pushed.changed(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def closed(params: types.DidCloseTextDocumentParams) -> None:
        server.findings.forget(params.text_document.uri)
        pushed.closed(params.text_document.uri)


async def diagnostic(
    server: "QcnServer", params: types.DocumentDiagnosticParams
) -> types.DocumentDiagnosticReport:
    """Answer with what is found in the newest text, or that it is what it was."""
    document = server.documents.get(params.text_document.uri)
    if document is None or not _wanted(server, document.uri):
        return types.RelatedFullDocumentDiagnosticReport(items=[])
    while True:
        found = await _findings(server, document)
        newest = server.documents.get(document.uri)
        if newest is None or newest.text == document.text:
            break
        document = newest  # it was typed over meanwhile
    items = [_diagnostic(server, document, finding) for finding in found]
    id_ = _result_id(document, found)
    if id_ == params.previous_result_id:
        return types.RelatedUnchangedDocumentDiagnosticReport(result_id=id_)
    return types.RelatedFullDocumentDiagnosticReport(items=items, result_id=id_)


class PushedDiagnostics:
    """Tells a client that does not ask; one scan at a time for each document."""

    def __init__(self, server: "QcnServer") -> None:
        self._server = server
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def changed(self, uri: str) -> None:
        """Tell what is found in a document's new text."""
        key = same_document_key(uri)
        if not self._asks and _wanted(self._server, uri) and key not in self._tasks:
            self._tasks[key] = asyncio.ensure_future(self._keep_up(uri, key))

    def closed(self, uri: str) -> None:
        """Take back what was told of a document."""
        if task := self._tasks.pop(same_document_key(uri), None):
            task.cancel()
        if not self._asks and _wanted(self._server, uri):
            self._publish(uri, None, [])

    def tell_anew(self) -> None:
        """Work by the settings that hold now: tell, take back, or have the client ask again."""
        if self._asks:
            workspace = self._server.client_capabilities.workspace
            if workspace and workspace.diagnostics and workspace.diagnostics.refresh_support:
                self._server.workspace_diagnostic_refresh(None)
            return
        for document in self._server.documents.open_documents():
            if _wanted(self._server, document.uri):
                self.changed(document.uri)
            else:
                self._publish(document.uri, document.version, [])

    @property
    def _asks(self) -> bool:
        text_document = self._server.client_capabilities.text_document
        return bool(text_document and text_document.diagnostic)

    async def _keep_up(self, uri: str, key: str) -> None:
        """Scan and tell until the text that was told of is the newest."""
        try:
            told: Document | None = None
            while (document := self._server.documents.get(uri)) is not None and document != told:
                found = await _findings(self._server, document)
                told = document
                if self._server.documents.get(uri) == document and _wanted(self._server, uri):
                    items = [_diagnostic(self._server, document, finding) for finding in found]
                    self._publish(document.uri, document.version, items)
        except Exception:
            logger.exception("telling the findings of %s failed", uri)
        finally:
            if self._tasks.get(key) is asyncio.current_task():
                del self._tasks[key]

    def _publish(self, uri: str, version: int | None, items: list[types.Diagnostic]) -> None:
        versions = _publishing(self._server.client_capabilities, "version_support")
        self._server.text_document_publish_diagnostics(
            types.PublishDiagnosticsParams(
                uri=uri, diagnostics=items, version=version if versions else None
            )
        )


async def _findings(server: "QcnServer", document: Document) -> tuple[Finding, ...]:
    """Return what rules find, and what a model has said on demand."""
    return (*await server.findings.of(document), *server.findings.reviewed(document))


def _wanted(server: "QcnServer", uri: str) -> bool:
    settings = server.settings_for(uri)
    return settings.enable and settings.security.findings


def _diagnostic(server: "QcnServer", document: Document, finding: Finding) -> types.Diagnostic:
    """Return a finding in the client's terms."""
    place = types.Range(
        document.position_at(finding.start, server.encoding),
        document.position_at(finding.end, server.encoding),
    )
    severity = _SEVERITIES[finding.severity]
    if finding.proof is not Proof.WITNESS and finding.severity is Severity.ERROR:
        severity = types.DiagnosticSeverity.Warning  # it may not be so
    client = server.client_capabilities
    described = types.CodeDescription(f"https://cwe.mitre.org/data/definitions/{finding.cwe}.html")
    return types.Diagnostic(
        range=place,
        message=f"{finding.message} {finding.rationale}",
        severity=severity,
        source=SOURCE,
        code=finding.rule,
        code_description=described if _supports(client, "code_description_support") else None,
        data=_data(document, finding) if _supports(client, "data_support") else None,
    )


def _data(document: Document, finding: Finding) -> dict[str, Any]:
    """Return what an action on the diagnostic finds its finding by."""
    id_ = identity(document.text, finding)
    return {"rule": finding.rule, "cwe": finding.cwe, "proof": finding.proof.value, "id": id_}


def _supports(client: types.ClientCapabilities, name: str) -> bool:
    """Whether the client understands a property, in the way in which it takes diagnostics."""
    asking = client.text_document.diagnostic if client.text_document else None
    asked = bool(getattr(asking, name, False))
    return asked or _publishing(client, name)


def _publishing(client: types.ClientCapabilities, name: str) -> bool:
    told = client.text_document.publish_diagnostics if client.text_document else None
    return bool(getattr(told, name, False))


def _result_id(document: Document, found: tuple[Finding, ...]) -> str:
    """Return a name of these findings at these places."""
    digest = blake2b(document.language_id.encode(), digest_size=16)
    digest.update(document.text.encode("utf-8", "replace"))
    digest.update(repr(found).encode("utf-8", "replace"))
    return digest.hexdigest()
