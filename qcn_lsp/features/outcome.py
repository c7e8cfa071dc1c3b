"""`qcn/completionOutcome`, a notification of our own: what became of a suggestion."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

logger = logging.getLogger(__name__)

COMPLETION_OUTCOME = "qcn/completionOutcome"


def register(server: "QcnServer") -> None:
    """Listen to the notification `{outcome: "accepted" | "rejected"}` on `server`."""

    @server.feature(COMPLETION_OUTCOME)
    def handle(params: dict[str, Any] | list[Any] | None) -> None:
        outcome = params.get("outcome") if isinstance(params, dict) else None
        if outcome == "accepted":
            server.tally.accepted += 1
        elif outcome == "rejected":
            server.tally.rejected += 1
        else:
            logger.warning("%s with an outcome that is none", COMPLETION_OUTCOME)
