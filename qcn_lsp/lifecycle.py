"""The server's life as a process: the reading loop, the end, and what ends it.

The process ends when `exit` comes, when the input ends, when the client no longer reads, or when
the process that started it (`initialize.processId`) is gone, whichever is first. The exit code is
0 after `shutdown`, 1 without.

A thread reads standard input, because asyncio can watch pipes but neither files nor Windows'
consoles, and because input is then taken in even while a handler computes or a slow client
makes us wait in a write: two sides that wait for each other's reading never hang.
"""

import asyncio
import logging
import os
import select
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from qcn_lsp.protocol import Phase
from qcn_lsp.stdio import BrokenFrame, Wire, claim, read_frames

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 3.0
"""How long an end in order may take before the process is ended without it."""

Inbox = asyncio.Queue[bytes | BrokenFrame | None]


def serve_stdio(server: "QcnServer") -> int:
    """Serve one client on standard input and output; returns the process's exit code."""
    inlet, wire = claim()
    try:
        return asyncio.run(_serve(server, inlet, wire))
    except KeyboardInterrupt:
        return 130


async def _serve(server: "QcnServer", inlet: int, wire: Wire) -> int:
    loop = asyncio.get_running_loop()
    inbox: Inbox = asyncio.Queue()  # None: the end

    def put(frame: bytes | BrokenFrame | None) -> None:
        try:
            loop.call_soon_threadsafe(inbox.put_nowait, frame)
        except RuntimeError:  # the loop is closed: the process is ending anyway
            logger.debug("input after the end")

    def read() -> None:
        try:
            for frame in read_frames(inlet):
                put(frame)
        except OSError as error:
            logger.error("standard input broke: %s", error)
        put(None)

    def leave(reason: str) -> None:
        logger.warning("leaving: %s", reason)
        _end_by_force_later(1)
        put(None)

    protocol = server.protocol
    protocol.set_writer(wire)
    server.leave = leave
    threading.Thread(target=read, name="stdin", daemon=True).start()

    while protocol.exit_code is None and not wire.lost:
        frame = await inbox.get()
        if frame is None:
            break
        try:
            protocol.receive(frame)
        except Exception:  # a defect of ours costs one message, not the session
            logger.exception("a message was lost; please report this")
        # A handler just started runs to its first await before the next message is looked at:
        # it sees the documents as they were when its request was sent (M7).
        await asyncio.sleep(0)

    code = protocol.exit_code
    if code is None:
        code = 0 if protocol.phase is Phase.SHUT_DOWN else 1
    _end_by_force_later(code)
    protocol.close()
    await server.close()
    return code


def _end_by_force_later(code: int) -> None:
    """Make sure that the process ends, whatever a handler or a library's thread is stuck in."""
    timer = threading.Timer(_GRACE_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()


def watch_process(pid: int, on_gone: Callable[[str], None]) -> None:
    """Call `on_gone`, on another thread, once the process with this id has ended."""

    def watch() -> None:
        try:
            _wait_for_end(pid)
        except ProcessLookupError:
            pass  # it ended before we looked
        except OSError as error:
            logger.warning("cannot watch the client's process %d: %s", pid, error)
            return
        on_gone(f"the client's process {pid} is gone")

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _wait_for_end(pid: int) -> None:
    """Block until a process ends. Raises ProcessLookupError when there is none."""
    if sys.platform == "linux":
        try:
            _wait_on_descriptor(pid)
            return
        except ProcessLookupError:
            raise
        except OSError as error:  # a kernel or sandbox without pidfd_open
            logger.info("process %d is watched by looking again and again: %s", pid, error)
    import psutil  # 50 ms, and only where it is needed

    try:
        psutil.Process(pid).wait()
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(pid) from error


def _wait_on_descriptor(pid: int) -> None:
    """Block in one system call; Linux only."""
    assert sys.platform == "linux"  # tells the type checker as well
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()
    finally:
        os.close(descriptor)
