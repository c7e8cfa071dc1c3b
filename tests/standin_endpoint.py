"""A stand-in for somebody's OpenAI-compatible server, which keeps what it is sent."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

COMPLETION = {
    "object": "text_completion",
    "choices": [{"index": 0, "text": "x, y", "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 5},
    },
}


@dataclass
class Endpoint:
    """A server; `answers` replaces what it does on a path, `requests` is what it was sent."""

    url: str
    answers: dict[str, Response] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)

    async def handle(self, request: Request) -> Response:
        path = request.url.path
        body = await request.json() if request.method == "POST" else {}
        self.requests.append((path, dict(request.headers), body))
        return self.answers.get(path) or JSONResponse({"detail": "Not Found"}, 404)

    def sent_to(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, _, body in self.requests if asked == path]


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """Run a stand-in on a loopback port while the block runs."""
    listener = socket.create_server(("127.0.0.1", 0))
    served = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}")
    served.answers = {
        "/v1/models": JSONResponse({"data": [{"id": "first-coder"}, {"id": "second-coder"}]}),
        "/v1/completions": JSONResponse(COMPLETION),
    }
    routes = [Route("/{rest:path}", served.handle, methods=["GET", "POST"])]
    server = uvicorn.Server(
        uvicorn.Config(Starlette(routes=routes), log_level="warning", lifespan="off")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield served
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def html(status: int = 200) -> Response:
    return HTMLResponse("<html><body>Welcome to the proxy</body></html>", status)


def redirect(url: str) -> Response:
    return RedirectResponse(url)


def refusal(message: str, status: int) -> Response:
    return JSONResponse({"error": {"message": message, "type": "x", "code": status}}, status)
