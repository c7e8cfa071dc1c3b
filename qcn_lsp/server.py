"""The language server: its state, and what it does at the turns of its life.

State is changed on the event loop's thread only. Handlers read immutable values from it: a
`Document`, the `Settings`, the list of workspace roots (replaced, never changed in place).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsprotocol import types
from pygls.lsp.server import LanguageServer
from qcn_indexer.open_files import root_of

from qcn_lsp.configuration import Configuration
from qcn_lsp.context.contexts import RepositoryContexts
from qcn_lsp.context.open_files import OpenFiles
from qcn_lsp.documents import DocumentStore
from qcn_lsp.engine.messages import EngineState, EngineStatus
from qcn_lsp.protocol import QcnProtocol, make_converter
from qcn_lsp.scan.open_documents import DocumentFindings
from qcn_lsp.settings import Role, Settings
from qcn_lsp.status import StatusReporter
from qcn_lsp.tally import Tally
from qcn_lsp.uris import file_path

if TYPE_CHECKING:
    from concurrent.futures import Future

    from qcn_lsp.engine.link import EngineLink

logger = logging.getLogger(__name__)


class QcnServer(LanguageServer):
    """One client's server."""

    protocol: QcnProtocol

    def __init__(self) -> None:
        super().__init__(
            "qcn-lsp",
            metadata.version("qcn-lsp"),
            protocol_cls=QcnProtocol,
            converter_factory=make_converter,
        )
        self.documents = DocumentStore()
        self.settings = Settings()
        """Those that hold outside of workspace folders, and for the whole server."""
        self._settings_in: dict[Path, Settings] = {}
        self.status = StatusReporter(self)
        self.tally = Tally()
        self.workspace_roots: list[Path] = []
        self.leave: Callable[[str], None] = logger.error
        """Ends the process for the reason given; set by `lifecycle`."""
        self.contexts = RepositoryContexts(self)
        self.chat_contexts = RepositoryContexts(self, "chat")
        self.open_files = OpenFiles(self)
        self.findings = DocumentFindings()
        self.when_settings_change: list[Callable[[], None]] = []
        """Called when other settings than before hold."""
        self._configuration = Configuration(self)
        self._engines: dict[str, EngineLink] = {}  # by model
        handlers: dict[str, Callable[[Any], Any]] = {
            types.INITIALIZED: self._on_initialized,
            types.TEXT_DOCUMENT_DID_OPEN: self._on_did_open,
            types.TEXT_DOCUMENT_DID_CHANGE: self._on_did_change,
            types.TEXT_DOCUMENT_DID_CLOSE: self._on_did_close,
            types.WORKSPACE_DID_CHANGE_WORKSPACE_FOLDERS: self._on_folders,
            types.WORKSPACE_DID_CHANGE_CONFIGURATION: self._configuration.on_change,
            types.WORKSPACE_DID_CHANGE_WATCHED_FILES: self._on_watched_files,
            types.WINDOW_WORK_DONE_PROGRESS_CANCEL: self._on_progress_cancel,
        }
        for method, handler in handlers.items():
            self.protocol.fm.add_builtin_feature(method, handler)

    @property
    def encoding(self) -> types.PositionEncodingKind:
        """The code units that columns are counted in."""
        return self.documents.encoding

    @property
    def engine(self) -> "EngineLink":
        """The link to the engine that completes."""
        return self.engine_for("completion")

    @property
    def completes_by_chat(self) -> bool:
        """Whether completions are asked for by chats, as far as the engine is known."""
        wanted = self.settings.completion.format
        return wanted == "chat" or (wanted == "auto" and not self.engine.infills)

    def engine_for(self, role: Role) -> "EngineLink":
        """The link to the engine of a role's model; made, not started, when first used.

        Roles that have the same model share it.
        """
        model = self.settings.models.of(role)
        if model not in self._engines:
            self._engines[model] = self._link_to(model)
        return self._engines[model]

    def _link_to(self, model: str) -> "EngineLink":
        from qcn_lsp.engine.link import EngineLink

        def report(status: EngineStatus) -> None:
            if self._engines.get(model) is link:  # a link that was replaced has no more say
                self.status.engine_changed(model, status)

        link = EngineLink(
            self.settings.engine,
            model,
            on_status=report,
            budgets=self.settings.engine_budgets,
            beside=self.settings.models.beside(model),
        )
        return link

    def settings_in(self, root: Path | None) -> Settings:
        """Return the settings of a workspace folder; None: outside of all."""
        return self.settings if root is None else self._settings_in.get(root, self.settings)

    def settings_for(self, uri: str) -> Settings:
        """Return the settings that hold for a document."""
        path = file_path(uri)
        return self.settings_in(None if path is None else root_of(path, self.workspace_roots))

    async def settled(self) -> None:
        """Return when the settings are what the client last told a change of."""
        await self._configuration.settled()

    def apply_settings(
        self, settings: Settings, in_folders: Mapping[Path, Settings] | None = None
    ) -> None:
        """Work with these settings from now on; those `in_folders` differ in resource settings."""
        places = (None, *self.workspace_roots)
        before = [self.settings_in(place) for place in places]
        old, self.settings, self._settings_in = self.settings, settings, dict(in_folders or {})
        now = [self.settings_in(place) for place in places]
        self.status.set_enabled(any(one.enable for one in now[1:] or now))
        if [one.context for one in before] != [one.context for one in now] or (
            old.models != settings.models
        ):
            self.contexts.end_all()  # begun anew with the next completion
            self.chat_contexts.end_all()
        linked, wanted = ((one.engine, one.models, one.engine_budgets) for one in (old, settings))
        if linked != wanted:
            links, self._engines = self._engines, {}
            for model, link in links.items():
                self.status.engine_changed(model, EngineStatus(EngineState.STOPPED))
                asyncio.ensure_future(link.close()).add_done_callback(_log_failure)
        if before != now:
            for tell in self.when_settings_change:
                tell()

    @property
    def client_watches_files(self) -> bool:
        """Whether the client tells of changes on disk, if it is asked to."""
        workspace = self.client_capabilities.workspace
        watching = workspace.did_change_watched_files if workspace else None
        return bool(watching and watching.dynamic_registration)

    async def close(self) -> None:
        """Let go of the engines, which other servers may go on using."""
        self.contexts.end_all()
        self.chat_contexts.end_all()
        await self.findings.close()
        for link in self._engines.values():
            try:
                await link.close()
            except Exception:
                logger.exception("the link to the engine did not close in order")

    # --- Called by the protocol ---------------------------------------------------------------

    def on_initialize(
        self, params: types.InitializeParams, encoding: types.PositionEncodingKind
    ) -> None:
        """Take in what the client says of itself. Nothing may be sent yet."""
        self.documents.encoding = encoding
        self.workspace_roots = _roots(params)
        self._configuration.on_initialize(params)
        client = params.client_info
        logger.info(
            "initialized by %s, columns in %s, roots %s",
            f"{client.name} {client.version or ''}" if client else "an unnamed client",
            encoding.value,
            [str(root) for root in self.workspace_roots],
        )
        if params.process_id is not None and params.process_id > 0:
            from qcn_lsp.lifecycle import watch_process

            watch_process(params.process_id, self.leave)

    def on_malformed_notification(self, method: str, raw_params: object) -> None:
        """Hear of a notification that could not be understood."""
        if method in (types.TEXT_DOCUMENT_DID_OPEN, types.TEXT_DOCUMENT_DID_CHANGE):
            identifier = raw_params.get("textDocument") if isinstance(raw_params, dict) else None
            uri = identifier.get("uri") if isinstance(identifier, dict) else None
            if isinstance(uri, str):
                self.documents.lose(uri)

    # --- Notifications ------------------------------------------------------------------------

    def _on_initialized(self, _params: object) -> None:
        self._configuration.on_initialized()
        if self.client_watches_files:
            self._watch_files()

    def _watch_files(self) -> None:
        everything = types.FileSystemWatcher(glob_pattern="**/*")
        registration = types.Registration(
            id="qcn-files",
            method=types.WORKSPACE_DID_CHANGE_WATCHED_FILES,
            register_options=types.DidChangeWatchedFilesRegistrationOptions([everything]),
        )
        self.client_register_capability(
            types.RegistrationParams(registrations=[registration])
        ).add_done_callback(_log_refusal)

    def _on_watched_files(self, params: types.DidChangeWatchedFilesParams) -> None:
        paths = _paths(change.uri for change in params.changes)
        self.contexts.changed_on_disk(paths)
        self.chat_contexts.changed_on_disk(paths)
        self.open_files.changed_on_disk(paths)

    def _on_progress_cancel(self, params: types.WorkDoneProgressCancelParams) -> None:
        self.status.cancel_progress(params.token)

    def _on_did_open(self, params: types.DidOpenTextDocumentParams) -> None:
        self.documents.open(params.text_document)

    def _on_did_change(self, params: types.DidChangeTextDocumentParams) -> None:
        self.documents.change(params.text_document, params.content_changes)

    def _on_did_close(self, params: types.DidCloseTextDocumentParams) -> None:
        self.documents.close(params.text_document.uri)

    def _on_folders(self, params: types.DidChangeWorkspaceFoldersParams) -> None:
        removed = _paths(folder.uri for folder in params.event.removed)
        added = _paths(folder.uri for folder in params.event.added)
        kept = [root for root in self.workspace_roots if root not in removed]
        self.workspace_roots = kept + [root for root in added if root not in kept]
        for contexts in (self.contexts, self.chat_contexts):
            contexts.end_outside(self.workspace_roots)
        self._configuration.on_folders()


def create_server() -> QcnServer:
    """Return the server with all its features, not yet started."""
    from qcn_lsp import features

    server = QcnServer()
    features.register(server)
    return server


def _roots(params: types.InitializeParams) -> list[Path]:
    """Return the workspace's folders, named in the newest way the client knows."""
    if params.workspace_folders:
        return _paths(folder.uri for folder in params.workspace_folders)
    if params.root_uri:
        return _paths([params.root_uri])
    return [Path(params.root_path)] if params.root_path else []


def _paths(uris: Iterable[str]) -> list[Path]:
    """Return the paths of the folders that lie in this file system, each once."""
    return list(dict.fromkeys(path for uri in uris if (path := file_path(uri)) is not None))


def _log_refusal(answer: "Future[None]") -> None:
    """Say that we shall hear of no change on disk, though the client promised to tell."""
    if not answer.cancelled() and (error := answer.exception()):
        logger.warning("the client does not report changes of files: %s", error)


def _log_failure(task: asyncio.Future[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("closing the link to the engine failed", exc_info=error)
