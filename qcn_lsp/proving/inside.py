"""The launcher: the first process in a sandbox (number 1 there), which runs the others.

It is given to a Python in the sandbox as text, so it imports the standard library alone, and is
ours, but not trusted by the server: what runs beside it may be anyone's. It reads requests from
standard input and answers on standard output; both carry frames: the header's length in four
bytes, the header in JSON, and as many further bytes as the header's `size` says.

- `put` (`path`, `mode`, `size`) and `link` (`path`, `target`): a file, a symbolic link. No answer;
  the first error is told by the next request that has one.
- `seal`: remember what the files are now.
- `run` (`argv`, `environment`, `seconds`, `output_bytes`): answers `exit_code`, `ended_by`, `cut`
  (bytes left out), and the output.
- `read` (`path`, `file_bytes`): answers `found`, and the file's bytes.
- `changes` (`file_bytes`, `total_bytes`): answers `files`, one `{path, size, text}` for each that
  is not as it was, `size` None where it is gone, and the bytes of those with `text`.

The end of standard input ends it, and with it, as it is number 1, every process there.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

TICK_SECONDS = 0.05  # between two looks at the memory in use
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
MAX_CHANGES = 2000


def main() -> None:
    """Take the orders of the room's description, then requests until the input ends."""
    room = json.loads(sys.argv[1])
    _shed_privileges(room["uid"])
    Launcher(room, sys.stdin.buffer, sys.stdout.buffer).serve()


def _shed_privileges(uid: int | None) -> None:
    """Become the user `uid`, for good, and let no other process look into this one."""
    if uid is not None and os.getuid() != uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # changing the user took it away


class Launcher:
    """Serves requests one after the other."""

    def __init__(self, room: dict[str, Any], requests: BinaryIO, answers: BinaryIO) -> None:
        self._root = Path(room["root"])
        self._limits: dict[str, int] = room["limits"]
        self._session: bool = room["session"]
        self._outside = {self._root / path for path in room["outside"]}
        self._requests = requests
        self._answers = answers
        self._problem: str | None = None
        self._sealed: dict[str, tuple[int, ...]] = {}

    def serve(self) -> None:
        """Do as asked until the requests end."""
        while header := self._requests.read(4):
            request = json.loads(self._requests.read(struct.unpack(">I", header)[0]))
            body = self._requests.read(request.get("size", 0))
            act = getattr(self, f"_do_{request['do']}")
            try:
                act(request, body)
            except OSError as error:
                self._problem = self._problem or f"{request.get('path', '')}: {error.strerror}"
                if request["do"] not in ("put", "link"):
                    self._answer({})

    def _answer(self, answer: dict[str, Any], body: bytes = b"") -> None:
        header = json.dumps({**answer, "problem": self._problem, "size": len(body)}).encode()
        self._problem = None
        self._answers.write(struct.pack(">I", len(header)) + header + body)
        self._answers.flush()

    def _do_put(self, request: dict[str, Any], body: bytes) -> None:
        path = self._root / request["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        path.chmod(request["mode"])

    def _do_link(self, request: dict[str, Any], _: bytes) -> None:
        path = self._root / request["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(request["target"])

    def _do_seal(self, _request: dict[str, Any], _: bytes) -> None:
        self._sealed = self._files()
        self._answer({})

    def _do_read(self, request: dict[str, Any], _: bytes) -> None:
        body = self._body(request["path"], request["file_bytes"])
        self._answer({"found": body is not None}, body or b"")

    def _do_changes(self, request: dict[str, Any], _: bytes) -> None:
        now = self._files()
        files: list[dict[str, Any]] = []
        bodies: list[bytes] = []
        room = request["total_bytes"]
        changed = [path for path in now if now[path] != self._sealed.get(path)]
        gone = [path for path in self._sealed if path not in now]
        for path in sorted(changed)[:MAX_CHANGES]:
            body = self._body(path, min(request["file_bytes"], room))
            files.append({"path": path, "size": len(body or b""), "text": body is not None})
            bodies.append(body or b"")
            room -= len(body or b"")
        files += [{"path": path, "size": None, "text": False} for path in sorted(gone)]
        more = max(0, len(changed) + len(gone) - MAX_CHANGES)
        self._answer({"files": files[:MAX_CHANGES], "more": more}, b"".join(bodies))

    def _body(self, path: str, limit: int) -> bytes | None:
        """Return a file's bytes; None for what is none, or too long."""
        try:
            descriptor = os.open(self._root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return None
                body = file.read(limit + 1)
        except OSError:
            return None
        return body if len(body) <= limit else None

    def _files(self) -> dict[str, tuple[int, ...]]:
        """Return everything below the root but folders, with what tells a change of it.

        No process can set the time of the last change of an inode (`ctime`).
        """
        found: dict[str, tuple[int, ...]] = {}
        pending = [self._root]
        while pending:
            folder = pending.pop()
            with contextlib.suppress(OSError), os.scandir(folder) as listing:
                for entry in listing:
                    if Path(entry.path) in self._outside:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
                        continue
                    status = entry.stat(follow_symlinks=False)
                    name = os.path.relpath(entry.path, self._root)
                    found[name] = (status.st_ino, status.st_size, status.st_ctime_ns)
        return found

    def _do_run(self, request: dict[str, Any], _: bytes) -> None:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            self._become(request, writer)
        os.close(writer)
        os.set_blocking(reader, False)
        output = Output(request["output_bytes"])
        status, ended_by = self._watch(child, reader, output, request["seconds"])
        self._end_all(child)
        output.drain(reader)
        os.close(reader)
        answer = {"exit_code": status, "ended_by": ended_by, "cut": output.left_out}
        self._answer(answer, output.kept())

    def _become(self, request: dict[str, Any], writer: int) -> None:
        """Turn this process, a child, into the command."""
        try:
            os.setsid() if self._session else os.setpgid(0, 0)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            os.closerange(3, 1 << 16)
            os.chdir(self._root)
            os.nice(5)  # the editor goes first
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # for what is its own in /proc
            Path("/proc/self/oom_score_adj").write_text("1000")
            for name in ("DATA", "NPROC", "FSIZE", "NOFILE"):
                if name in self._limits:
                    limit = self._limits[name]
                    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
                signal.signal(number, signal.SIG_DFL)
            os.execvpe(request["argv"][0], request["argv"], request["environment"])
        except OSError as error:
            os.write(2, f"{request['argv'][0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)

    def _watch(
        self, child: int, reader: int, output: "Output", seconds: float
    ) -> tuple[int, str | None]:
        """Wait for the end of `child`, or for a limit; return its exit code and which limit."""
        now = time.monotonic()
        deadline, next_look = now + seconds, now + TICK_SECONDS
        end = os.pidfd_open(child)
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        poll.register(end, select.POLLIN)
        poll.register(self._requests.fileno(), select.POLLHUP)
        try:
            while True:
                ready = dict(poll.poll(max(0.0, next_look - now) * 1000))
                if self._requests.fileno() in ready:
                    os._exit(1)  # nobody waits for the answer
                if reader in ready and output.read(reader) == b"":
                    poll.unregister(reader)
                while ended := _reaped():
                    if ended[0] == child:
                        return os.waitstatus_to_exitcode(ended[1]), None
                now = time.monotonic()
                if now > deadline:
                    return -signal.SIGKILL, "time"
                if now >= next_look:
                    if self._short_of_memory():
                        return -signal.SIGKILL, "memory"
                    next_look = time.monotonic() + TICK_SECONDS
        finally:
            os.close(end)

    def _short_of_memory(self) -> bool:
        """Return whether all processes together hold too much, or the machine has too little left.

        The second is for memory that no process shows, such as what sockets hold.
        """
        if "MEMORY" not in self._limits or os.getpid() != 1:  # else it sees other people's
            return False
        used = sum(_resident(process) for process in _numbers())
        return used > self._limits["MEMORY"] or _available() < self._limits["FLOOR"]

    def _end_all(self, child: int) -> None:
        """End every process but this one, and wait until they are gone."""
        if os.getpid() != 1:  # in no sandbox, or half of one: these are other people's processes
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)
            return
        with contextlib.suppress(ChildProcessError):  # none is left
            while True:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)
                os.waitpid(-1, 0)


class Output:
    """What a command writes: the first half and the last half of what may be kept."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.left_out = 0

    def read(self, descriptor: int) -> bytes | None:
        """Take what is there; None when nothing is, and nothing at all when it is closed."""
        try:
            block = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return None
        room = self._half - len(self._head)
        self._head += block[: max(0, room)]
        self._tail += block[max(0, room) :]
        excess = max(0, len(self._tail) - self._half)
        self.left_out += excess
        del self._tail[:excess]
        return block

    def drain(self, descriptor: int) -> None:
        """Take the rest, when nobody writes any more."""
        while self.read(descriptor):
            pass

    def kept(self) -> bytes:
        """Return both halves, and between them how much is missing."""
        gap = f"\n[{self.left_out} bytes left out]\n".encode() if self.left_out else b""
        return bytes(self._head) + gap + bytes(self._tail)


def _reaped() -> tuple[int, int] | None:
    """Return the number and status of a process that has ended, if one has."""
    try:
        ended = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return ended if ended[0] else None


def _numbers() -> list[int]:
    """Return the numbers of all processes."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _resident(process: int) -> int:
    """Return the bytes of memory that are a process's own, or its part of what some share.

    0 when it is gone. One that lets nobody look into it is charged with all that it shares.
    """
    if process == os.getpid():
        return 0
    for name, wanted in (
        ("smaps_rollup", ("Pss_Anon:", "Pss_Shmem:")),
        ("status", ("RssAnon:", "RssShmem:")),
    ):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/{name}").read_text().splitlines()
            return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(wanted))
    return 0


def _available() -> int:
    """Return the bytes of memory that the machine has left."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


if __name__ == "__main__":
    main()
