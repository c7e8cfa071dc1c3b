"""The requests the server answers, one file each: parameters → snapshot → pure call → answer."""

from typing import TYPE_CHECKING

from qcn_lsp.features import actions, completion, focus, inline_completion, repository
from qcn_lsp.features.actions.model_actions import ModelActions
from qcn_lsp.features.suggestions import Suggestions

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

__all__ = ["register"]


def register(server: "QcnServer") -> None:
    """Register all features on `server`.

    Copilot's `textDocument/didShowCompletion` and `didPartiallyAcceptCompletion` are not among
    them: nothing here counts them yet, and a notification nobody listens to is ignored.
    """
    suggestions = Suggestions(server)
    inline_completion.register(server, suggestions)
    completion.register(server, suggestions)
    focus.register(server)
    repository.register(server)
    actions.register(server, [ModelActions(server)])
