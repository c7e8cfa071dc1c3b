"""Serves the page to a browser on this machine: `qcn context --open`.

Only who knows the token in the address is answered, and only under a loopback name: a page of
another site that has its name resolve to this machine (DNS rebinding) sends its own. The browser is
not given the address on its command line, where other users could read it, but a file of the
user's that leads there. Serving ends when the page says that it is gone, or is silent for long.
"""

import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

LOOPBACK = "127.0.0.1"
# A page that is loaded again says that it is gone, and comes back at once.
GONE_SECONDS = 5.0
# Browsers wake a page in the background once a minute at most; one never opened is given up too.
SILENT_SECONDS = 300.0
TYPES = {
    "context.html": "text/html; charset=utf-8",
    "context.css": "text/css; charset=utf-8",
    "context.js": "text/javascript; charset=utf-8",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Look = Callable[[bool], dict[str, Any]]
"""Returns the page's data; told whether it lacks what is never read."""


class ViewServer(ThreadingHTTPServer):
    """The page and its data on a loopback port; `address` is where."""

    daemon_threads = True

    def __init__(self, look: Look) -> None:
        self.token = secrets.token_urlsafe(24)
        self.look = look
        self._heard = time.monotonic()
        self._patience = SILENT_SECONDS
        self._changed = threading.Condition()
        super().__init__((LOOPBACK, 0), _Handler)

    @property
    def host(self) -> str:
        """The `Host` that requests must name."""
        return f"{LOOPBACK}:{self.server_port}"

    @property
    def address(self) -> str:
        """Where the page is; who knows it may see the data."""
        return f"http://{self.host}/{self.token}/context.html"

    def heard(self, *, patience: float = SILENT_SECONDS) -> None:
        """Note that the page asked for something, and how long it may be silent now."""
        with self._changed:
            self._heard, self._patience = time.monotonic(), patience
            self._changed.notify()

    def serve_until_gone(self) -> None:
        """Serve; returns when nobody looks at the page any more."""
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            with self._changed:
                while (left := self._heard + self._patience - time.monotonic()) > 0:
                    self._changed.wait(left)
        finally:
            self.shutdown()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One request; everything below the token, nothing above it."""

    server: ViewServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds for a request to arrive

    def do_GET(self) -> None:
        """Answer with a file of the page, or with data."""
        name = self._allowed()
        if name is None:
            return
        self.server.heard()
        if name == "data":
            wanted = parse_qs(urlsplit(self.path).query)
            body = json.dumps(self.server.look(wanted.get("skipped") == ["1"]))
            self._send(HTTPStatus.OK, body.encode(), "application/json")
        elif kind := TYPES.get(name):
            self._send(
                HTTPStatus.OK, resources.files(__package__).joinpath(name).read_bytes(), kind
            )
        else:
            self._send(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Hear that the page is gone."""
        name = self._allowed()
        if name == "gone":
            self.server.heard(patience=GONE_SECONDS)
            self._send(HTTPStatus.NO_CONTENT)
        elif name is not None:
            self._send(HTTPStatus.NOT_FOUND)

    def _allowed(self) -> str | None:
        """Return what is asked for below the token; None where the request was refused."""
        _, token, *rest = [*urlsplit(self.path).path.split("/"), ""]
        known = hmac.compare_digest(token.encode(), self.server.token.encode())
        if not known or self.headers.get("Host") != self.server.host:
            self._send(HTTPStatus.FORBIDDEN)
            return None
        return "/".join(rest[:-1])

    def _send(self, status: HTTPStatus, body: bytes = b"", kind: str = "text/plain") -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if status is not HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name
        """Say nothing: addresses hold the token."""
