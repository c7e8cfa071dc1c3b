"""Where the log goes: all of it to standard error, warnings and errors to the client as well."""

import logging
import sys
from typing import TYPE_CHECKING

from lsprotocol import types

from qcn_lsp.protocol import Phase

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer


def set_up_log(server: "QcnServer") -> None:
    """Send our own records where they belong; of libraries, only what is at least a warning."""
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(to_stderr)
    logging.getLogger().setLevel(logging.WARNING)
    own = logging.getLogger("qcn_lsp")
    own.setLevel(server.settings.log.level.upper())
    own.addHandler(ClientLog(server))


class ClientLog(logging.Handler):
    """Shows records in the editor's log, while there is an editor that may be written to."""

    def __init__(self, server: "QcnServer") -> None:
        super().__init__(logging.WARNING)
        self._server = server

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; safe on any thread, as sending is."""
        if self._server.protocol.phase is not Phase.RUNNING:
            return
        kind = (
            types.MessageType.Error
            if record.levelno >= logging.ERROR
            else types.MessageType.Warning
        )
        try:
            self._server.window_log_message(types.LogMessageParams(kind, record.getMessage()))
        except Exception:
            self.handleError(record)
