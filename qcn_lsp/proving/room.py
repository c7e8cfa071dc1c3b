"""What a sandbox holds and what it walls off, whichever program builds it."""

import os
import secrets
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from qcn_lsp.proving.outcomes import MIB, Limits

HOME = "/tmp/home"
MACHINE_FLOOR = 1 << 30
_SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# What programs need to run at all; no name, key or address of this machine or its user is in them.
_SYSTEM_FILES = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "nsswitch.conf"),
    *("mime.types", "magic", "fonts", "java", "maven", "ssl/certs", "ssl/openssl.cnf"),
)
_STRANGERS = range(60578, 61184)
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


class Wall(StrEnum):
    """One thing that keeps a sandbox's processes in; the attack suite is run without each, too."""

    COPY = "copy"  # the workspace is a copy
    ROOT = "root"  # of the machine's files, only the named ones are there
    READ_ONLY = "read-only"  # and nobody writes to them
    DEVICES = "devices"
    ENVIRONMENT = "environment"
    NETWORK = "network"
    PROCESSES = "processes"
    IPC = "ipc"
    SESSION = "session"  # no terminal
    PRIVILEGES = "privileges"
    SYSTEM_CALLS = "system-calls"
    PROCESS_MEMORY = "process-memory"
    TOTAL_MEMORY = "total-memory"
    PROCESS_COUNT = "process-count"
    FILE_SIZE = "file-size"
    DISK = "disk"


ALL_WALLS = frozenset(Wall)


@dataclass(frozen=True)
class Room:
    """A sandbox to be built: a copy of `root` at the same path, the system and tools read-only.

    `tools` are folders of the machine (an interpreter, a virtual environment) that are seen at
    their own path. `uid` is the user that processes are inside, where the server is the
    superuser: one that owns nothing, another one for each sandbox.
    """

    root: Path
    tools: tuple[Path, ...] = ()
    limits: Limits = field(default_factory=Limits)
    walls: frozenset[Wall] = ALL_WALLS
    uid: int | None = None

    def has(self, wall: Wall) -> bool:
        """Return whether that wall stands."""
        return wall in self.walls

    @property
    def read_only(self) -> tuple[Path, ...]:
        """Return what of the machine is seen, but for the system's folders of `links`."""
        top = [Path("/", name) for name in _SYSTEM_FOLDERS]
        etc = [Path("/etc", name) for name in _SYSTEM_FILES]
        system = [Path("/usr"), *(path for path in top if not path.is_symlink()), *etc]
        seen = dict.fromkeys((*system, python_home(), *self.tools))
        return tuple(path for path in seen if path.exists())

    @property
    def links(self) -> tuple[tuple[str, str], ...]:
        """Return the system's folders that are links into `/usr`, as (link, target)."""
        top = [Path("/", name) for name in _SYSTEM_FOLDERS]
        return tuple((str(path), str(path.readlink())) for path in top if path.is_symlink())

    @property
    def users(self) -> str:
        """Return the sandbox's `/etc/passwd`."""
        uid = os.getuid() if self.uid is None else self.uid
        return f"user:x:{uid}:{uid}:user:{HOME}:/bin/sh\n"

    def orders(self) -> dict[str, object]:
        """Return what the launcher is told."""
        limits = self.limits
        memory = limits.memory_mib * MIB
        total = machine_memory()
        walled = {
            Wall.PROCESS_MEMORY: {"DATA": memory},
            Wall.TOTAL_MEMORY: {"MEMORY": memory, "FLOOR": min(MACHINE_FLOOR, total // 20)},
            Wall.PROCESS_COUNT: {"NPROC": limits.processes},
            Wall.FILE_SIZE: {"FSIZE": limits.file_mib * MIB},
        }
        numbers = {"NOFILE": limits.open_files}
        for wall, some in walled.items():
            numbers |= some if self.has(wall) else {}
        inside = [path for path in self.read_only if path.is_relative_to(self.root)]
        return {
            "root": str(self.root),
            "outside": [str(path.relative_to(self.root)) for path in inside],
            "uid": self.uid if self.has(Wall.PRIVILEGES) else None,
            "session": self.has(Wall.SESSION),
            "limits": numbers,
        }


def environment(path: str = "") -> dict[str, str]:
    """Return the whole environment of a command; `path` is searched first."""
    return {
        "PATH": f"{path}:{SYSTEM_PATH}" if path else SYSTEM_PATH,
        "HOME": HOME,
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "CI": "true",  # runners of tests neither watch, nor ask, nor colour
    }


def python() -> Path:
    """Return the interpreter that runs the launcher: this one's own, outside any environment."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def python_home() -> Path:
    """Return the folder that interpreter was installed into."""
    return Path(sys.base_prefix).resolve()


def stranger() -> int | None:
    """Return the number of a user that owns nothing, where this process is the superuser.

    No limit of processes binds the superuser. The numbers are left free by convention (systemd's
    list of users and groups); one is drawn, as each user's processes are counted together.
    """
    return _STRANGERS[secrets.randbelow(len(_STRANGERS))] if os.geteuid() == 0 else None


def machine_memory() -> int:
    """Return the bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
