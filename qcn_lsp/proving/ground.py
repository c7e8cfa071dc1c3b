"""Which sandbox of this machine holds, and views of a workspace in it."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from qcn_lsp.proving.outcomes import Limits
from qcn_lsp.proving.view import View


class ProvingGround:
    """The sandbox that holds on this machine, if any; made by `find`, kept for the server's life.

    As many views are open at once as the machine has cores and memory for; further ones wait.
    """

    backend: str  # "podman", "docker", "bubblewrap"; "" where none holds
    holds: bool
    reason: str  # one sentence: what holds, or why nothing does and what to do

    @classmethod
    async def find(cls, sandbox: str = "auto") -> "ProvingGround":
        """Attack the sandboxes that are there, and take the first that holds. Never raises.

        `sandbox` is the setting `security.sandbox`: "auto", "off", "bubblewrap", "docker" or
        "podman". What was found is kept for an hour, in the user's cache folder.
        """
        raise NotImplementedError

    def deploy(
        self, root: Path, edits: Mapping[str, str], limits: Limits | None = None
    ) -> AbstractAsyncContextManager[View]:
        """Copy a workspace without its ignored and secret files, with `edits` in place.

        `edits`: path below `root` to the file's whole new text; open buffers belong here too.
        Raises `ProvingError`: nothing holds, a path leads out of the workspace or differs from a
        file there only by case or Unicode form, the workspace is too large or gone.
        Leaving the context, or cancelling it, ends every process and removes the copy.
        """
        raise NotImplementedError
