"""Bubblewrap's command line for a room. It needs no daemon and no rights."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from qcn_lsp.proving import syscalls
from qcn_lsp.proving.outcomes import MIB
from qcn_lsp.proving.room import HOME, SYSTEM_PATH, Room, Wall, environment

_FLAGS = {
    Wall.NETWORK: ["--unshare-net"],
    Wall.PROCESSES: ["--unshare-pid", "--as-pid-1"],
    Wall.IPC: ["--unshare-ipc"],
    Wall.SESSION: ["--new-session"],
    Wall.ENVIRONMENT: ["--clearenv"],
}


class Bubblewrap:
    """Builds sandboxes with bubblewrap, from the system's folders alone, not from any `PATH`."""

    name = "bubblewrap"
    absent = "Bubblewrap is not installed (Debian, Ubuntu, Fedora, Arch: the package bubblewrap)."

    async def version(self) -> str | None:
        """Return its version; None where it is not installed."""
        if _program() is None:
            return None
        process = await asyncio.create_subprocess_exec(
            *(str(_program()), "--version"), stdout=asyncio.subprocess.PIPE, env={}
        )
        said, _ = await process.communicate()
        return said.decode(errors="replace").removeprefix("bubblewrap").strip()[:40]

    def environment(self) -> dict[str, str]:
        """Return an environment with nothing of the server's in it."""
        return environment()

    def command(self, room: Room, launcher: list[str], hand: Callable[[bytes], int]) -> list[str]:
        """Return the command that runs `launcher` in `room`.

        `hand` takes bytes and returns the descriptor that the command will find them at.
        """
        return [
            str(_program() or "bwrap"),
            *("--die-with-parent", "--unshare-uts", "--unshare-cgroup-try"),
            *(flag for wall, flags in _FLAGS.items() if room.has(wall) for flag in flags),
            *_privileges(room),
            *_files(room, hand),
            *_devices(room),
            *_copy(room),
            *("--remount-ro", "/"),
            *(["--seccomp", str(hand(syscalls.filter_program()))] * room.has(Wall.SYSTEM_CALLS)),
            *("--chdir", "/", "--", *launcher),
        ]


def _program() -> Path | None:
    found = shutil.which("bwrap", path=SYSTEM_PATH)
    return Path(found) if found else None


def _privileges(room: Room) -> list[str]:
    """Return who one is inside: the user in a namespace of users, or one that the launcher becomes.

    The superuser takes no such namespace: in it, he would be himself, whom no limit of processes
    binds.
    """
    namespace = [] if os.geteuid() == 0 else ["--unshare-user"]
    if not room.has(Wall.PRIVILEGES):
        return [*namespace, "--cap-add", "ALL"]
    kept = ["CAP_SETUID", "CAP_SETGID"] if os.geteuid() == 0 else []
    return [*namespace, "--cap-drop", "ALL", *(word for cap in kept for word in ("--cap-add", cap))]


def _files(room: Room, hand: Callable[[bytes], int]) -> list[str]:
    seen = [path for path in room.read_only if not path.is_relative_to(room.root)]
    return [
        *("--perms", "0755", "--tmpfs", "/"),
        *_memory_files(room, _share(room), "/tmp"),
        *("--perms", "0777", "--dir", HOME),
        *_bound(room, seen),
        *(word for link, target in room.links for word in ("--symlink", target, link)),
        *("--ro-bind-data", str(hand(room.users.encode())), "/etc/passwd"),
        *("--ro-bind-data", str(hand(b"127.0.0.1 localhost\n::1 localhost\n")), "/etc/hosts"),
        *("--proc", "/proc"),
        *([] if room.has(Wall.ROOT) else _everything_beside({*seen} - {*room.tools})),
    ]


def _everything_beside(seen: set[Path]) -> list[str]:
    """Show the machine's other folders as well, to be written to."""
    return [
        word
        for top in Path("/").iterdir()
        if top.is_dir() and not top.is_symlink() and top not in (Path("/proc"), Path("/dev"))
        if not any(path.is_relative_to(top) for path in seen)
        for word in ("--bind", str(top), str(top))
    ]


def _devices(room: Room) -> list[str]:
    if not room.has(Wall.DEVICES):
        return ["--dev-bind", "/dev", "/dev"]
    return ["--dev", "/dev", *_memory_files(room, _share(room), "/dev/shm"), "--remount-ro", "/dev"]


def _copy(room: Room) -> list[str]:
    """Return the place of the workspace's copy, and over it what of the workspace is read-only."""
    root = str(room.root)
    if not room.has(Wall.COPY):
        return ["--bind", root, root]
    within = [path for path in room.read_only if path.is_relative_to(room.root)]
    return [
        *_folders_above([room.root]),
        *_memory_files(room, room.limits.disk_mib, root),
        *_bound(room, within),
    ]


def _bound(room: Room, paths: list[Path]) -> list[str]:
    """Show files and folders of the machine at their own paths."""
    bind = "--ro-bind" if room.has(Wall.READ_ONLY) else "--bind"
    return [
        *_folders_above(paths),
        *(word for path in paths for word in (bind, str(path), str(path))),
    ]


def _folders_above(paths: list[Path]) -> list[str]:
    """Make the folders on the way passable: bubblewrap would give them the rights that they have.

    A home folder is its user's alone, and the sandbox's user may be another one.
    """
    above = sorted({parent for path in paths for parent in path.parents} - {Path("/")})
    kept = {Path("/tmp"), Path("/usr")}  # there already, with rights of their own
    return [
        word
        for path in above
        if path not in kept
        for word in ("--perms", "0755", "--dir", str(path))
    ]


def _share(room: Room) -> int:
    """Return the MiB that may be written elsewhere than in the copy, in one place."""
    return room.limits.disk_mib // 4 + 1


def _memory_files(room: Room, mib: int, place: str) -> list[str]:
    """Return an empty folder in memory that everyone inside may write to, of bounded size."""
    size = ["--size", str(mib * MIB)] if room.has(Wall.DISK) else []
    return ["--perms", "1777", *size, "--tmpfs", place]
