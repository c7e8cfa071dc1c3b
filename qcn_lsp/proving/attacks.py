"""The suite of attacks: a sandbox is used only after all of them have failed in it, here and now.

Everything an attack goes for is planted for it and removed afterwards: files, servers, processes.
Each names the wall that stops it; the tests take that wall away and see the attack succeed.
"""

import contextlib
import ctypes
import importlib.resources
import json
import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from qcn_lsp.proving.deploy import deploy
from qcn_lsp.proving.outcomes import MIB, Limits
from qcn_lsp.proving.room import ALL_WALLS, HOME, Room, Wall, environment, python, stranger
from qcn_lsp.proving.sandbox import Builder, Sandbox, sandbox

ATTACK_LIMITS = Limits(
    seconds=120, memory_mib=96, disk_mib=16, file_mib=4, processes=48, output_bytes=1 << 16
)
_SECRET = "qcn_lsp planted this"
# Whoever has the same user may look into it and, as far as the system goes, trace it.
_VICTIM = """
import ctypes, os, signal, sys
if sys.argv[1]:
    os.setgroups([])
    os.setresgid(*[int(sys.argv[1])] * 3)
    os.setresuid(*[int(sys.argv[1])] * 3)
libc = ctypes.CDLL(None)
libc.prctl(4, 1, 0, 0, 0)
libc.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
print("ready", flush=True)
signal.pause()
"""


@dataclass(frozen=True)
class Attack:
    """An attempt of `attempts.py`, and the wall that stops it.

    `alone`: it uses up a limit, and its process may be ended for it.
    """

    name: str
    wall: Wall
    alone: bool = False


ATTACKS = (
    Attack("read_home", Wall.ROOT),
    Attack("follow_link", Wall.ROOT),
    Attack("write_outside", Wall.ROOT),
    Attack("connect_file", Wall.ROOT),
    Attack("read_ignored", Wall.COPY),
    Attack("write_workspace", Wall.COPY),
    Attack("write_tools", Wall.READ_ONLY),
    Attack("read_shared_memory", Wall.DEVICES),
    Attack("read_environment", Wall.ENVIRONMENT),
    Attack("connect", Wall.NETWORK),
    Attack("connect_ipv6", Wall.NETWORK),
    Attack("send_datagram", Wall.NETWORK),
    Attack("connect_abstract", Wall.NETWORK),
    Attack("list_connections", Wall.NETWORK),
    Attack("open_raw_socket", Wall.PRIVILEGES),
    Attack("reach_host_of_machine", Wall.SYSTEM_CALLS),
    Attack("use_keyring", Wall.SYSTEM_CALLS),
    Attack("read_message_queue", Wall.IPC),
    Attack("type_into_terminal", Wall.SESSION),
    Attack("read_others_environment", Wall.PROCESSES),
    Attack("trace_process", Wall.PROCESSES),
    Attack("end_process", Wall.PROCESSES),
    Attack("stay", Wall.PROCESSES),
    Attack("make_user_namespace", Wall.SYSTEM_CALLS, alone=True),
    Attack("hide_memory", Wall.SYSTEM_CALLS, alone=True),
    Attack("fork_bomb", Wall.PROCESS_COUNT, alone=True),
    Attack("take_memory", Wall.PROCESS_MEMORY, alone=True),
    Attack("take_memory_together", Wall.TOTAL_MEMORY, alone=True),
    Attack("write_large_file", Wall.FILE_SIZE, alone=True),
    Attack("fill_disk", Wall.DISK, alone=True),
)


class Result(StrEnum):
    """How an attack ended. Only where every one `HELD` does a sandbox hold."""

    HELD = "held"
    SUCCEEDED = "succeeded"
    UNPROVEN = "unproven"  # it was not carried out


async def assail(
    builder: Builder,
    attacks: Collection[Attack] = ATTACKS,
    walls: frozenset[Wall] = ALL_WALLS,
    *,
    hold_seconds: float = 20.0,
) -> dict[str, Result]:
    """Carry out attacks in a sandbox of `builder`'s, and return how each ended.

    Those that use up a limit come last, and are left out when the sandbox does not hold anyway.

    Raises `ProvingError` when no sandbox can be built. `hold_seconds`: how long memory is held
    before it counts as taken.
    """
    uid = stranger()
    with planted(uid) as fixtures:
        room = Room(fixtures.workspace, (fixtures.tools,), ATTACK_LIMITS, walls, uid)
        results: dict[str, Result] = {}
        async with sandbox(builder, room) as box:
            if room.has(Wall.COPY):
                await deploy(box, room.root, {})
            targets = fixtures.targets | {"hold_seconds": hold_seconds}
            for group in _groups(attacks):
                results |= await _attempt(box, group, targets)
                if set((results | fixtures.seen(results)).values()) != {Result.HELD}:
                    break  # it does not hold: the machine is spared the rest
        return results | fixtures.seen(results)


def _groups(attacks: Collection[Attack]) -> Iterator[list[Attack]]:
    """Yield what is attempted by one process."""
    if together := [attack for attack in attacks if not attack.alone]:
        yield together
    yield from ([attack] for attack in attacks if attack.alone)


async def _attempt(
    box: Sandbox, group: list[Attack], targets: Mapping[str, Any]
) -> dict[str, Result]:
    names = [attack.name for attack in group]
    exit_code, ended_by, output = await box.run(
        attempt_command(names, targets), environment(), ATTACK_LIMITS.seconds
    )
    results = said(output)
    stopped = ended_by == "memory" or exit_code < 0  # by the limit that it went for
    for attack in group:
        if attack.alone and stopped:
            results.setdefault(attack.name, Result.HELD)
    return dict.fromkeys(names, Result.UNPROVEN) | results


def attempt_command(names: Collection[str], targets: Mapping[str, Any]) -> list[str]:
    """Return the command that makes attempts of `attempts.py`."""
    source = importlib.resources.files("qcn_lsp.proving").joinpath("attempts.py").read_text("utf-8")
    return [str(python()), "-I", "-S", "-c", source, json.dumps(targets), *names]


def said(output: bytes) -> dict[str, Result]:
    """Return what attempts say of themselves: a line of JSON for each."""
    results: dict[str, Result] = {}
    for line in output.splitlines():
        with contextlib.suppress(ValueError, AttributeError):
            for name, got_there in json.loads(line).items():
                results[name] = Result.SUCCEEDED if got_there else Result.HELD
    return results


@dataclass
class Fixtures:
    """What was planted, and what has become of it."""

    workspace: Path
    tools: Path
    targets: dict[str, Any]
    _victim: "subprocess.Popen[bytes]"
    _datagrams: socket.socket

    def seen(self, told: Mapping[str, Result]) -> dict[str, Result]:
        """Return the results that are seen from outside, whatever the attempts say."""
        happened = {
            "write_outside": _overwritten(self.targets["outside"]),
            "write_workspace": _overwritten(self.targets["source"]),
            "write_tools": _overwritten(self.targets["tool"]),
            "send_datagram": self._has_datagram(),
            "end_process": self._victim_ended(told.get("end_process")),
            "stay": bool(daemons(self.targets["daemon"])),
        }
        return {
            name: Result.SUCCEEDED if happened[name] else Result.HELD
            for name, result in told.items()
            if name in happened and result is not Result.UNPROVEN
        }

    def _has_datagram(self) -> bool:
        try:
            return bool(self._datagrams.recv(64, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    def _victim_ended(self, told: Result | None) -> bool:
        if told is not Result.SUCCEEDED:
            return self._victim.poll() is not None
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process of that number got it
            self._victim.wait(timeout=20)
        return self._victim.poll() is not None


def daemons(mark: str) -> list[psutil.Process]:
    """Return the processes that were left behind with `mark` in their command line."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if mark in (process.info["cmdline"] or [])
    ]


def _overwritten(path: str) -> bool:
    return Path(path).read_text(encoding="utf-8") != _SECRET


@contextlib.contextmanager
def planted(uid: int | None) -> Iterator[Fixtures]:
    """Plant everything that attacks go for; remove it at the end.

    `uid`: the user that sandboxed processes are, where that is another one than this process's:
    what is planted is then within that user's reach, so that walls are tried and not permissions.
    """
    mark = f"qcn-attack-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qcn-attack-")))
        folder.chmod(0o755)
        workspace, tools = folder / "workspace", folder / "tools"
        for path in (workspace, tools):
            path.mkdir()
            path.chmod(0o777)
        files = {
            "outside": folder / "outside.txt",
            "source": workspace / "source.py",
            "tool": tools / "python.txt",
            "ignored": workspace / "ignored.txt",
            "secret_by_name": workspace / ".env",
            "shared_memory": Path("/dev/shm", mark),
        }
        home = stack.enter_context(_in_home(mark))
        for path in (*files.values(), home):
            _plant(stack, path)
        (workspace / ".gitignore").write_text("ignored.txt\n", encoding="utf-8")
        (workspace / "link").symlink_to(files["outside"])
        stack.enter_context(_variable(mark))
        victim, traced = (stack.enter_context(_victim(uid)) for _ in range(2))
        stack.callback(_end_daemons, mark)
        datagrams = stack.enter_context(_bound(socket.AF_INET, "127.0.0.1", socket.SOCK_DGRAM))
        tcp = stack.enter_context(_bound(socket.AF_INET, "127.0.0.1"))
        tcp6 = stack.enter_context(_bound(socket.AF_INET6, "::1"))
        local = stack.enter_context(_listening(str(folder / "socket")))
        (folder / "socket").chmod(0o777)
        stack.enter_context(_listening(f"\0{mark}"))
        yield Fixtures(
            workspace,
            tools,
            {
                "secret": _SECRET,
                "secret_files": [str(home), str(files["outside"])],
                "ignored_files": [str(files["ignored"]), str(files["secret_by_name"])],
                "shared_memory": str(files["shared_memory"]),
                "link": str(workspace / "link"),
                "outside": str(files["outside"]),
                "source": str(files["source"]),
                "tool": str(files["tool"]),
                "scratch": str(workspace),
                "writable": [str(workspace), "/tmp", "/dev/shm", "/dev", "/", "/run", HOME],
                "tcp": tcp.getsockname()[1],
                "tcp6": tcp6.getsockname()[1],
                "udp": datagrams.getsockname()[1],
                "socket": local.getsockname(),
                "abstract": mark,
                "victim": victim.pid,
                "traced": traced.pid,
                "daemon": mark,
                "queue": stack.enter_context(_message_queue()),
                "processes": 2 * ATTACK_LIMITS.processes,
                "memory": (ATTACK_LIMITS.memory_mib + 64) * MIB,
                "file": 2 * ATTACK_LIMITS.file_mib * MIB,
                "disk": (ATTACK_LIMITS.disk_mib + 8) * MIB,
            },
            victim,
            datagrams,
        )


def _plant(stack: contextlib.ExitStack, path: Path) -> None:
    path.write_text(_SECRET, encoding="utf-8")
    path.chmod(0o666)  # a fixture of seconds, which anyone may read and spoil
    stack.callback(path.unlink, missing_ok=True)


@contextlib.contextmanager
def _in_home(mark: str) -> Iterator[Path]:
    """Yield a path in the user's cache folder, or in the temporary one where there is none."""
    import platformdirs

    try:
        folder = platformdirs.user_cache_path("qcn", appauthor=False, ensure_exists=True)
        (folder / mark).touch()
    except OSError:
        folder = Path(tempfile.gettempdir())
    yield folder / mark


@contextlib.contextmanager
def _variable(name: str) -> Iterator[None]:
    os.environ[name] = _SECRET
    try:
        yield
    finally:
        del os.environ[name]


@contextlib.contextmanager
def _victim(uid: int | None) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a process of the user `uid` with a secret in its environment, which anyone may trace."""
    command = [str(python()), "-I", "-S", "-c", _VICTIM, "" if uid is None else str(uid)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={"PLANTED": _SECRET}, cwd="/"
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _end_daemons(mark: str) -> None:
    for process in daemons(mark):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _bound(family: int, host: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a server on a loopback address that nobody serves: a connection is made all the same.

    Where there is no IPv6 it is one of IPv4, to be found at the same number.
    """
    try:
        server = socket.socket(family, kind)
        server.bind((host, 0))
    except OSError:
        server = socket.socket(socket.AF_INET, kind)
        server.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        server.listen(8)
    server.setblocking(False)
    return server


def _listening(address: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen(8)
    return server


@contextlib.contextmanager
def _message_queue() -> Iterator[int]:
    """Yield the key of a message queue that everyone may read."""
    libc = ctypes.CDLL(None)
    key = secrets.randbelow(1 << 30) + 1
    queue = libc.msgget(key, 0o1666)  # IPC_CREAT, and everyone's
    try:
        yield key
    finally:
        libc.msgctl(queue, 0, None)  # IPC_RMID
