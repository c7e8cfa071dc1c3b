"""Docker's and Podman's command lines for a room.

The image is empty and is made here, so nothing is ever pulled: what the sandbox sees of the system
is this machine's, read-only, as with bubblewrap. A container ends when the launcher in it does,
and that one ends with its standard input, however the client ends.

Not proven on a machine with a container engine yet. It need not be believed: an engine is used
only after the suite of attacks has failed in it. `Room.walls` is for bubblewrap: here all stand.
"""

import asyncio
import contextlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from qcn_lsp.proving.outcomes import MIB, Limits
from qcn_lsp.proving.room import HOME, SYSTEM_PATH, Room

IMAGE = "localhost/qcn-proving:empty"
ANSWER_SECONDS = 10.0
# Where the client finds its engine, and nothing else of the server's environment.
_CLIENT_VARIABLES = ("HOME", "XDG_RUNTIME_DIR", "DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST")


class ContainerEngine:
    """Builds sandboxes with `docker` or `podman`, from the system's folders alone."""

    def __init__(self, name: str, path: str = SYSTEM_PATH) -> None:
        self.name = name
        self.absent = f"{name.capitalize()} is not installed, or its engine does not answer."
        self._path = path

    async def version(self) -> str | None:
        """Return the engine's version, and make the image; None where it does not answer."""
        if self._program() is None:
            return None
        field = "{{.Server.Version}}" if self.name == "docker" else "{{.Client.Version}}"
        said = await self._ask("version", "--format", field)
        if said is None or await self._ask("import", "-", IMAGE, given=_empty_archive()) is None:
            return None
        return said.decode(errors="replace").strip()[:40]

    def environment(self) -> dict[str, str]:
        """Return what the client itself needs; nothing of it is seen in a container."""
        known = {name: os.environ[name] for name in _CLIENT_VARIABLES if name in os.environ}
        return {"PATH": self._path} | known

    def command(self, room: Room, launcher: list[str], hand: Callable[[bytes], int]) -> list[str]:
        """Return the command that runs `launcher` in `room`; no descriptor is needed."""
        return [
            *(str(self._program() or self.name), "run", "--rm", "--interactive", "--pull=never"),
            *("--log-driver=none", "--workdir=/", "--entrypoint="),
            *self._user(room),
            *("--network=none", "--read-only", "--cap-drop=ALL"),
            "--security-opt=no-new-privileges",
            *_limits(room.limits),
            *_files(room),
            *(IMAGE, *launcher),
        ]

    def _user(self, room: Room) -> list[str]:
        """Return who one is inside. Podman without rights knows only the caller."""
        uid = os.getuid() if room.uid is None else room.uid
        same = ["--userns=keep-id"] if self.name == "podman" and os.getuid() else []
        return [f"--user={uid}:{uid}", *same]

    def _program(self) -> Path | None:
        found = shutil.which(self.name, path=self._path)
        return Path(found) if found else None

    async def _ask(self, *arguments: str, given: bytes = b"") -> bytes | None:
        """Return what the client writes; None where it fails, or does not answer in time."""
        process = await asyncio.create_subprocess_exec(
            *(str(self._program()), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=self.environment(),
            cwd="/",
        )
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                said, _ = await process.communicate(given)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return None
        return said if process.returncode == 0 else None


def _limits(limits: Limits) -> list[str]:
    memory = f"{limits.memory_mib + limits.disk_mib}m"  # what lies in memory counts as well
    return [f"--memory={memory}", f"--memory-swap={memory}", f"--pids-limit={limits.processes}"]


def _files(room: Room) -> list[str]:
    seen = [(str(path), str(path)) for path in room.read_only]
    linked = [(str(Path(link).resolve()), link) for link, _ in room.links]
    share = room.limits.disk_mib // 4 + 1
    places = {"/tmp": share, "/dev/shm": share, HOME: share, str(room.root): room.limits.disk_mib}
    options = "rw,exec,nosuid,nodev,mode=1777,size="
    return [
        *(f"--volume={source}:{place}:ro" for source, place in (*seen, *linked)),
        *(f"--tmpfs={place}:{options}{mib * MIB}" for place, mib in places.items()),
    ]


def _empty_archive() -> bytes:
    archive = io.BytesIO()
    tarfile.open(fileobj=archive, mode="w").close()
    return archive.getvalue()
