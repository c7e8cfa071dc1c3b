"""A stand-in for the Hugging Face Hub on a loopback port, as its HTTP interface is documented.

`GET /api/models/NAME/revision/REVISION?blobs=true` lists a commit's files with their sizes and
digests; `GET /NAME/resolve/COMMIT/PATH` gives one, large ones by way of another host.
"""

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "5b1c3f0d" * 5
LARGE = (".safetensors", ".gguf")


@dataclass
class Hub:
    """What it holds and how it behaves; `asked` is what it was asked for, in order."""

    files: dict[str, bytes]
    name: str = "Qwen/Tiny"
    token: str | None = None  # without which it gives nothing
    broken_after: int | None = None  # bytes of a large file, at which each connection ends
    knows_ranges: bool = True
    hangs_until: threading.Event | None = None  # and ends the connection, half of a large file sent
    served: dict[str, bytes] = field(default_factory=dict)  # in the place of what is listed
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    url: str = ""  # of the Hub; large files lie on another host
    storage_url: str = ""

    def listing(self) -> dict[str, Any]:
        return {"sha": COMMIT, "siblings": [self._told(*each) for each in self.files.items()]}

    def _told(self, path: str, content: bytes) -> dict[str, Any]:
        told: dict[str, Any] = {"rfilename": path, "size": len(content)}
        if path.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            return told | {"lfs": {"sha256": digest, "size": len(content)}}
        return told | {"blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}

    def paths_asked(self) -> list[str]:
        return [path for path, _, _ in self.asked]


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve while the block runs, and nothing of it outlives the block."""
    held = Hub(files)
    servers = [_Server(held, storage=storage) for storage in (False, True)]
    held.url, held.storage_url = (f"http://127.0.0.1:{each.server_port}" for each in servers)
    threads = [threading.Thread(target=each.serve_forever) for each in servers]
    for thread in threads:
        thread.start()
    try:
        yield held
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    """The Hub, or the host that it stores large files on."""

    def __init__(self, held: Hub, *, storage: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.held = held
        self.storage = storage


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        held, path = self.server.held, urlsplit(self.path).path
        held.asked.append((path, self.headers["Range"], self.headers["Authorization"]))
        if self.server.storage:
            self._content(path.removeprefix("/"))
        elif held.token and self.headers["Authorization"] != f"Bearer {held.token}":
            self._answer(401, b"")
        elif path in (f"/api/models/{held.name}/revision/{each}" for each in ("main", COMMIT)):
            self._answer(200, json.dumps(held.listing()).encode())
        else:
            self._file(path.removeprefix(f"/{held.name}/resolve/{COMMIT}/"))

    def _file(self, path: str) -> None:
        if path not in self.server.held.files:
            self._answer(404, b"")
        elif path.endswith(LARGE):
            self._answer(302, b"", Location=f"{self.server.held.storage_url}/{path}")
        else:
            self._content(path)

    def _content(self, path: str) -> None:
        held = self.server.held
        content = held.served.get(path, held.files[path])
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if asked and held.knows_ranges:
            self._answer(206, content[int(asked[1]) :])
        else:
            self._answer(200, content)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        held = self.server.held
        most = len(body) // 2 if held.hangs_until else held.broken_after
        if not self.server.storage or most is None or len(body) <= most:
            self.wfile.write(body)
            return
        self.wfile.write(body[:most])
        self.wfile.flush()
        if held.hangs_until:
            held.hangs_until.wait()
        with contextlib.suppress(OSError):  # the other end may be gone
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (inherited)
        del format, args
