"""Standard input and output as the protocol's wire: claiming them, framing, reading, writing.

The wire belongs to the protocol alone. Before anything else runs, `claim` moves it to private
descriptors and points file descriptor 1 and `sys.stdout` at standard error, so that a library
that prints (from Python or from C) ends up in the log, and not in the middle of a message.
"""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_HEADER_LINE_LIMIT = 64 * 1024
"""Bytes without a line end after which we stop waiting for a header's end."""
_BODY_LIMIT = 1 << 30
"""A declared length above 1 GiB is taken for a damaged header, and not waited for."""
_READ_SIZE = 1 << 20

# Searched for, not matched: after a wrong length the next header follows other bytes directly.
_CONTENT_LENGTH = re.compile(rb"content-length:[ \t]*(\d+)[ \t]*\r?\n\Z", re.IGNORECASE)
_CONTENT_TYPE = re.compile(rb"content-type:(.*)", re.IGNORECASE)
_CHARSET = re.compile(rb"charset=\"?([^\s;\"]+)", re.IGNORECASE)
_HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:")


@dataclass(frozen=True)
class BrokenFrame:
    """Bytes on the wire that are not a message; `problem` is a sentence for the client."""

    problem: str


def claim() -> tuple[int, "Wire"]:
    """Take standard input and output for the protocol; returns where to read and to write."""
    null = os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:  # started with standard error closed
        os.dup2(null, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - as long as the process
    inlet, outlet = os.dup(0), os.dup(1)
    os.dup2(null, 0)  # a child process must not eat messages
    os.dup2(2, 1)
    if null > 2:
        os.close(null)
    sys.stdout = sys.stderr
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(inlet, os.O_BINARY)
        msvcrt.setmode(outlet, os.O_BINARY)
    else:
        os.set_blocking(inlet, True)
        os.set_blocking(outlet, True)
    return inlet, Wire(outlet)


class Wire:
    """The way out. Whole messages, from any thread; once the client is gone, to nowhere."""

    def __init__(self, descriptor: int) -> None:
        self.lost = False
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Write all of `data`, waiting for a slow client; a broken pipe sets `lost`."""
        rest = memoryview(data)
        with self._lock:
            while rest and not self.lost:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except OSError:
                    self.lost = True

    def close(self) -> None:
        """Part of pygls' writer interface; the descriptor is closed when the process ends."""


def read_frames(inlet: int) -> Iterator[bytes | BrokenFrame]:
    """Yield each message's body as it arrives, until the end of input."""
    return parse_frames(lambda: os.read(inlet, _READ_SIZE))


def parse_frames(read: Callable[[], bytes]) -> Iterator[bytes | BrokenFrame]:
    """Cut a byte stream into message bodies.

    `read` returns some bytes, or none at the end. Bytes that are no header are reported once
    and skipped up to the next `Content-Length` line.
    """
    stream = _Stream(read)
    length: int | None = None
    refused: str | None = None
    headers_seen = skipping = False
    while line := stream.line():
        if line.strip():
            if found := _CONTENT_LENGTH.search(line):
                length = int(found[1]) if len(found[1]) < 20 else _BODY_LIMIT + 1
                headers_seen, skipping = True, False
                if length > _BODY_LIMIT:
                    yield BrokenFrame(f"a message of {found[1][:20].decode()} bytes is too long")
                    length, headers_seen, skipping = None, False, True
            elif content_type := _CONTENT_TYPE.match(line):
                headers_seen = True
                refused = refused or _unsupported_charset(content_type[1])
            elif not _HEADER.match(line) and not skipping:
                yield BrokenFrame("expected a header such as 'Content-Length: 123'")
                skipping = True
            else:
                headers_seen = True
            continue
        if length is not None:
            body = stream.exactly(length)
            if body is None:
                return
            yield BrokenFrame(refused) if refused else body
        elif headers_seen and not skipping:
            yield BrokenFrame("the header has no Content-Length")
            skipping = True
        length, refused, headers_seen = None, None, False


def _unsupported_charset(content_type: bytes) -> str | None:
    charset = _CHARSET.search(content_type)
    if charset is None or charset[1].lower() in (b"utf-8", b"utf8"):
        return None
    return f"messages are utf-8, not {charset[1].decode('ascii', 'replace')}"


class _Stream:
    """Lines and counted bytes out of a stream of chunks."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._buffer = bytearray()

    def line(self) -> bytes:
        """Return the next line with its end; cut at the limit; empty at the end of input."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > _HEADER_LINE_LIMIT or not self._more():
                return self._take(searched)
        return self._take(end + 1)

    def exactly(self, count: int) -> bytes | None:
        """Return `count` bytes; None when the input ends before."""
        while len(self._buffer) < count:
            if not self._more():
                return None
        return self._take(count)

    def _more(self) -> bool:
        chunk = self._read()
        self._buffer += chunk
        return bool(chunk)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken
