"""Which sandbox of this machine holds, and views of a workspace in it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from qcn_lsp.proving.attacks import assail
from qcn_lsp.proving.bubblewrap import Bubblewrap
from qcn_lsp.proving.containers import ContainerEngine
from qcn_lsp.proving.deploy import deploy
from qcn_lsp.proving.outcomes import MIB, Limits, ProvingError
from qcn_lsp.proving.room import Room, machine_memory, stranger
from qcn_lsp.proving.sandbox import Builder, sandbox
from qcn_lsp.proving.toolchains import toolchain
from qcn_lsp.proving.verdicts import Verdict, Verdicts
from qcn_lsp.proving.view import View

BUILDERS: tuple[Builder, ...] = (
    ContainerEngine("podman"),
    ContainerEngine("docker"),
    Bubblewrap(),
)
# A workspace here would lay its copy over what a sandbox is made of, or hold all of the user's.
_NO_WORKSPACE = ("/", "/usr", "/etc", "/dev", "/proc", "/sys", "/tmp", "/run", "/bin", "/lib")


class ProvingGround:
    """The sandbox that holds on this machine, if any; made by `find`, kept for the server's life.

    As many views are open at once as the machine has cores and memory for; further ones wait.
    """

    def __init__(
        self,
        verdicts: Sequence[Verdict],
        why: str = "",
        builders: Sequence[Builder] = BUILDERS,
    ) -> None:
        holding = next((verdict for verdict in verdicts if verdict.holds), None)
        self.verdicts = tuple(verdicts)
        self.holds = holding is not None
        self.backend = holding.builder if holding else ""
        self.reason = (
            holding.sentence
            if holding
            else why or " ".join(verdict.sentence for verdict in verdicts)
        )
        self._builder = next((one for one in builders if one.name == self.backend), None)
        self._places = asyncio.Semaphore(_views_at_once(Limits()))

    @classmethod
    async def find(
        cls, sandbox: str = "auto", builders: Sequence[Builder] = BUILDERS
    ) -> "ProvingGround":
        """Attack the sandboxes that are there, and take the first that holds. Never raises.

        `sandbox` is the setting `security.sandbox`: "auto", "off", "bubblewrap", "docker" or
        "podman". What was found is kept for an hour, in the user's cache folder.
        """
        if sandbox == "off":
            return cls((), "Project code is not run: qcn.security.sandbox is off.")
        if sys.platform != "linux":
            return cls((), "Project code is not run: no sandbox is known to hold on this system.")
        verdicts: list[Verdict] = []
        for builder in builders:
            if sandbox in ("auto", builder.name):
                verdicts.append(await _verdict(builder))
                if verdicts[-1].holds:
                    break
        return cls(verdicts, builders=builders)

    @contextlib.asynccontextmanager
    async def deploy(
        self, root: Path, edits: Mapping[str, str], limits: Limits | None = None
    ) -> AsyncIterator[View]:
        """Copy a workspace without its ignored and secret files, with `edits` in place.

        `edits`: path below `root` to the file's whole new text; open buffers belong here too.
        Raises `ProvingError`: nothing holds, a path leads out of the workspace or differs from a
        file there only by case or Unicode form, the workspace is too large or gone.
        Leaving the context, or cancelling it, ends every process and removes the copy.
        """
        if self._builder is None:
            raise ProvingError(self.reason)
        root = _checked_root(root)
        tools = await asyncio.to_thread(toolchain, root)
        room = Room(root, tools.folders, limits or Limits(), uid=stranger())
        async with self._places, sandbox(self._builder, room) as box:
            yield View(box, await deploy(box, root, edits), tools)


def _views_at_once(limits: Limits) -> int:
    """Return for how many sandboxes there are cores, and half of the machine's memory."""
    one = (limits.memory_mib + limits.disk_mib) * MIB
    return max(1, min(os.cpu_count() or 1, machine_memory() // 2 // one))


def _checked_root(root: Path) -> Path:
    root = root.resolve()
    if not root.is_dir():
        raise ProvingError(f"There is no folder {root}.")
    if str(root) in _NO_WORKSPACE or Path.home().is_relative_to(root):
        raise ProvingError(f"{root} is no folder of a project: it holds much more than that.")
    return root


async def _verdict(builder: Builder) -> Verdict:
    try:
        return await _judged(builder)
    # Also: no libseccomp, or what is attacked cannot be planted (no room, no shared memory).
    except (ProvingError, ImportError, RuntimeError, OSError) as error:
        return Verdict(builder.name, "", {}, f"{builder.name} is of no use here: {error}")


async def _judged(builder: Builder) -> Verdict:
    version = await builder.version()
    if version is None:
        return Verdict(builder.name, "", {}, builder.absent)
    verdicts = Verdicts()
    known = await asyncio.to_thread(verdicts.get, builder.name, version)
    if known:
        return known
    verdict = Verdict(builder.name, version, await assail(builder))
    await asyncio.to_thread(verdicts.put, verdict)
    return verdict
