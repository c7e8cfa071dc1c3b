"""What hostile code may try, as it is run in a sandbox (and, as a control, outside of one).

It is given to a Python in the sandbox as text: the standard library alone. Each attempt is bounded,
goes for what `attacks.py` has planted, and tells whether it got there; one that fails is an
`OSError` or False. Run with their names and the targets in JSON, it writes a line per attempt.
"""

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import platform
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Targets = dict[str, Any]
_LIBC = ctypes.CDLL(None, use_errno=True)
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17
_CLONE_NEWUSER = 0x10000000
_BLOCK = b"x" * (1 << 20)


def _readable(path: str, secret: str) -> bool:
    with contextlib.suppress(OSError):
        return secret in Path(path).read_text(errors="replace")
    return False


def read_home(targets: Targets) -> bool:
    """Read what lies in the user's folders."""
    return any(_readable(path, targets["secret"]) for path in targets["secret_files"])


def read_shared_memory(targets: Targets) -> bool:
    """Read what the user's programs share with each other."""
    return _readable(targets["shared_memory"], targets["secret"])


def follow_link(targets: Targets) -> bool:
    """Read what a symbolic link of the workspace leads to."""
    return _readable(targets["link"], targets["secret"])


def read_ignored(targets: Targets) -> bool:
    """Read what the workspace keeps out of git, or what holds a secret."""
    return any(_readable(path, targets["secret"]) for path in targets["ignored_files"])


def read_environment(targets: Targets) -> bool:
    """Read the server's environment, where it is inherited."""
    return targets["secret"] in os.environ.values()


def read_others_environment(targets: Targets) -> bool:
    """Read the environment of the user's programs."""
    numbers = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
    return any(
        _readable(f"/proc/{number}/environ", targets["secret"])
        for number in numbers
        if int(number) != os.getpid()
    )


def write_outside(targets: Targets) -> bool:
    """Write beside the workspace."""
    return _written(targets["outside"])


def write_workspace(targets: Targets) -> bool:
    """Write to the workspace itself."""
    return _written(targets["source"])


def write_tools(targets: Targets) -> bool:
    """Write to the interpreter, or to a virtual environment."""
    return _written(targets["tool"])


def _written(path: str) -> bool:
    Path(path).write_text("overwritten")  # seen from outside, or it does not count
    return True


def connect(targets: Targets) -> bool:
    """Connect to a server on this machine."""
    with socket.create_connection(("127.0.0.1", targets["tcp"]), timeout=5):
        return True


def connect_ipv6(targets: Targets) -> bool:
    """Connect to a server on this machine by IPv6."""
    with socket.create_connection(("::1", targets["tcp6"]), timeout=5):
        return True


def send_datagram(targets: Targets) -> bool:
    """Send a datagram, such as a question to a name server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        return sender.sendto(b"overwritten", ("127.0.0.1", targets["udp"])) > 0


def connect_abstract(targets: Targets) -> bool:
    """Connect to a Unix socket that has no file: the display, the session bus."""
    return _connected("\0" + targets["abstract"])


def connect_file(targets: Targets) -> bool:
    """Connect to a Unix socket in the file system: a container engine, an agent of keys."""
    return _connected(targets["socket"])


def _connected(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        return True


def list_connections(targets: Targets) -> bool:
    """List what this machine listens on, by netlink."""
    request = struct.pack("=IHHIIBBBBI48x", 72, 20, 0x301, 1, 0, 2, 6, 0, 0, 1 << 10)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as kernel:
        kernel.settimeout(5)
        kernel.send(request)
        while True:
            answer = kernel.recv(1 << 16)
            while len(answer) >= 16:
                length, kind = struct.unpack_from("=IH", answer)
                if kind != 20:  # the end, or an error
                    return False
                if struct.unpack_from(">H", answer, 20)[0] == targets["tcp"]:
                    return True
                answer = answer[(length + 3) & ~3 :]


def open_raw_socket(_: Targets) -> bool:
    """Speak below TCP and UDP."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return True


def reach_host_of_machine(_: Targets) -> bool:
    """Make a socket to the host of a virtual machine, which no network namespace holds.

    Asked for by its number, and by one that the kernel takes for the same: it looks at half of it.
    """
    families = (socket.AF_VSOCK, socket.AF_VSOCK | 1 << 32)
    number = _SOCKET[platform.machine()]
    made = [_LIBC.syscall(number, ctypes.c_ulong(one), socket.SOCK_STREAM, 0) for one in families]
    return any(descriptor >= 0 for descriptor in made)


def end_process(targets: Targets) -> bool:
    """End one of the user's programs."""
    os.kill(targets["victim"], signal.SIGTERM)
    return True


def trace_process(targets: Targets) -> bool:
    """Take over one of the user's programs."""
    victim = targets["traced"]
    if _LIBC.ptrace(_PTRACE_ATTACH, victim, None, None) != 0:
        return False
    os.waitpid(victim, 0)
    _LIBC.ptrace(_PTRACE_DETACH, victim, None, None)
    return True


def stay(targets: Targets) -> bool:
    """Leave a daemon behind."""
    reader, writer = os.pipe()  # closed by the daemon when it is what it will be
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.closerange(0, 3)
        code = "import time; time.sleep(60)"
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", code, targets["daemon"]])
    os.close(writer)
    return os.read(reader, 1) == b""  # seen from outside, or it does not count


def read_message_queue(targets: Targets) -> bool:
    """Look into the user's message queues."""
    return bool(_LIBC.msgget(targets["queue"], 0) >= 0)


def use_keyring(_: Targets) -> bool:
    """Find the keys that the kernel holds for the user."""
    return bool(_LIBC.syscall(_KEYCTL[platform.machine()], 0, -3, 0) >= 0)


def make_user_namespace(_: Targets) -> bool:
    """Become the superuser of a namespace of one's own, and mount there."""
    return bool(_LIBC.unshare(_CLONE_NEWUSER) == 0)


def hide_memory(targets: Targets) -> bool:
    """Take more memory than there may be, in files that are nowhere and that no process maps."""
    for _ in range(targets["memory"] // len(_BLOCK)):
        os.write(os.memfd_create("hidden"), _BLOCK)
    return True


def type_into_terminal(_: Targets) -> bool:
    """Type a command into the terminal that the server was started from, or write on it."""
    terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.ioctl(terminal, termios.TIOCSTI, b"\n")
    except OSError:  # newer kernels let nobody type: writing is what is left
        os.write(terminal, b".")
    return True


def fork_bomb(targets: Targets) -> bool:
    """Start more processes than there may be."""
    children = []
    try:
        for _ in range(targets["processes"]):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return True


def take_memory(targets: Targets) -> bool:
    """Take more memory than one process may have."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    mmap.mmap(-1, targets["memory"], flags=private).close()  # untouched: no watcher sees it
    return True


def take_memory_together(targets: Targets) -> bool:
    """Take more memory in many processes than all may have, each a part, and hold it."""
    reader, writer = os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            block = b"x" * (targets["memory"] // 4)
            os.write(writer, block[:1])
            signal.pause()
        children.append(child)
    try:
        held = sum(len(os.read(reader, 1)) for _ in children)
        time.sleep(targets["hold_seconds"])  # it is ended meanwhile, or it has got there
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return held == len(children)


def write_large_file(targets: Targets) -> bool:
    """Write a file larger than a file may be."""
    path = Path(targets["scratch"], "large")
    try:
        with path.open("wb") as file:
            file.truncate(targets["file"])
    finally:
        path.unlink(missing_ok=True)
    return True


def fill_disk(targets: Targets) -> bool:
    """Write more than there may be, wherever one may write."""
    taken = [_filled(place, targets["disk"]) for place in targets["writable"]]
    return any(size >= targets["disk"] for size in taken)


def _filled(place: str, limit: int) -> int:
    paths: list[Path] = []
    size = 0
    try:
        while size < limit:
            path = Path(place, f"fill-{os.getpid()}-{len(paths)}")
            paths.append(path)
            size += path.write_bytes(_BLOCK)
    except OSError:
        pass
    finally:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink()
    return size


def main(names: list[str], targets: Targets) -> None:
    """Make each attempt, and say how it went."""
    for name in names:
        attempt: Callable[[Targets], bool] = globals()[name]
        try:
            got_there = attempt(targets)
        except OSError:
            got_there = False
        print(json.dumps({name: got_there}), flush=True)


if __name__ == "__main__":
    main(sys.argv[2:], json.loads(sys.argv[1]))
