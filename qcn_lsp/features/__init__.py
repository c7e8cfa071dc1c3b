"""The requests the server answers, one file each: parameters → snapshot → pure call → answer."""

from typing import TYPE_CHECKING

from qcn_lsp.features import (
    actions,
    completion,
    diagnostics,
    focus,
    inline_completion,
    outcome,
    repository,
    skipped,
    state,
)
from qcn_lsp.features.actions.model_actions import ModelActions
from qcn_lsp.features.actions.review import SecurityReview
from qcn_lsp.features.actions.security import SecurityFixes
from qcn_lsp.features.suggestions import Suggestions

if TYPE_CHECKING:
    from qcn_lsp.features.actions.provider import Provider
    from qcn_lsp.server import QcnServer

__all__ = ["register"]


def register(server: "QcnServer") -> None:
    """Register all features on `server`.

    Copilot's `textDocument/didShowCompletion` and `didPartiallyAcceptCompletion` are not among
    them: `qcn/completionOutcome` counts, and a notification nobody listens to is ignored.
    """
    suggestions = Suggestions(server)
    inline_completion.register(server, suggestions)
    completion.register(server, suggestions)
    focus.register(server)
    outcome.register(server)
    state.register(server)
    repository.register(server)
    diagnostics.register(server)
    skipped.register(server)
    providers: list[Provider] = [
        SecurityFixes(server),
        ModelActions(server),
        SecurityReview(server),
    ]
    actions.register(server, providers)
