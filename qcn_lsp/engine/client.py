"""JSON over HTTP/1.1, over a Unix socket or TCP, with every failure turned into one sentence.

httpx is imported by the first client that is made, not with this module: it costs a tenth of a
second and `initialize` must not wait for it.

Guarantees. A cancelled call closes its connection at once, which tells the engine to stop. A
token goes to the one address the client was made for: redirects are never followed. Proxies of
the environment are not used for a loopback address or a Unix socket. Answers are read up to
`MAX_ANSWER_BYTES`, whatever the other side sends.
"""

import asyncio
import ipaddress
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qcn_lsp.engine.messages import (
    ConnectionLost,
    EngineUnavailable,
    NoAnswer,
    NoChatModel,
    Refused,
    Superseded,
    UnknownContext,
    Unreachable,
)

if TYPE_CHECKING:
    import httpx

MAX_ANSWER_BYTES = 16 << 20
CONNECT_SECONDS = 5.0
_JSON = {"Content-Type": "application/json"}


class HttpClient:
    """One HTTP endpoint that speaks JSON.

    `name` is what messages call it; `answer_seconds` is how long an answer may take.
    """

    def __init__(
        self,
        base_url: str,
        *,
        name: str,
        socket: Path | None = None,
        token: str | None = None,
        answer_seconds: float = 120.0,
    ) -> None:
        import httpx

        self.name = name
        self._timeout = httpx.Timeout(answer_seconds, connect=CONNECT_SECONDS)
        local = socket is not None or is_loopback(base_url)
        # A connection on this machine costs microseconds; one kept open could only go stale.
        limits = httpx.Limits(max_keepalive_connections=0 if local else 4)
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            transport=httpx.AsyncHTTPTransport(uds=str(socket), limits=limits) if socket else None,
            limits=limits,
            timeout=self._timeout,
            follow_redirects=False,
            trust_env=not local,
        )

    async def get(
        self, path: str, *, accept: tuple[int, ...] = (200,), seconds: float | None = None
    ) -> dict[str, Any]:
        """Return the JSON object at `path`; `seconds` shortens the time an answer may take."""
        return await self._call("GET", path, None, accept, seconds)

    async def post(
        self, path: str, body: dict[str, Any], *, accept: tuple[int, ...] = (200,)
    ) -> dict[str, Any]:
        """Send `body` as JSON and return the JSON object that comes back."""
        return await self._call("POST", path, body, accept, None)

    async def put(
        self, path: str, body: dict[str, Any], *, accept: tuple[int, ...] = (200,)
    ) -> dict[str, Any]:
        """As `post`, with the method that replaces what is at `path`."""
        return await self._call("PUT", path, body, accept, None)

    async def delete(self, path: str, *, accept: tuple[int, ...] = (200,)) -> dict[str, Any]:
        """Delete what is at `path`."""
        return await self._call("DELETE", path, None, accept, None)

    async def events(
        self, path: str, body: dict[str, Any], *, silence_seconds: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """Send `body` as JSON and yield the objects of the event stream that comes back.

        An error in the stream is raised as one that is answered outright. `silence_seconds` is how
        long nothing may come. Whoever stops listening closes the generator, and the connection.
        """
        import httpx

        timeout = httpx.Timeout(silence_seconds, connect=CONNECT_SECONDS)
        async with self._answer("POST", path, body, timeout) as response:
            if response.status_code != 200:
                raise self._refusal(response, await self._read(response))
            kind = response.headers.get("content-type", "no declared type")
            if not kind.startswith("text/event-stream"):
                raise self._unexpected(path, kind, "an event stream", response.status_code)
            async for event in _events_in(self._within_bounds(response)):
                if "error" in event:
                    raise self._failure(event)
                yield event

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: dict[str, Any] | None, patience: "httpx.Timeout"
    ) -> AsyncGenerator["httpx.Response"]:
        """What comes back, to be read in the block; what fails meanwhile becomes a sentence."""
        import httpx

        try:
            async with self._http.stream(
                method, path, content=_encoded(body), headers=_JSON, timeout=patience
            ) as response:
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            unreachable = f"{self.name} cannot be reached ({_reason(error)}): check that it runs."
            raise Unreachable(unreachable) from error
        except httpx.TimeoutException as error:
            limit = patience.read
            raise NoAnswer(f"{self.name} did not answer within {limit:g} seconds.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            lost = f"{self.name} broke off the connection ({_reason(error)})."
            raise ConnectionLost(lost) from error

    async def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        accept: tuple[int, ...],
        seconds: float | None,
    ) -> dict[str, Any]:
        import httpx

        timeout = self._timeout if seconds is None else httpx.Timeout(seconds)
        async with self._answer(method, path, body, timeout) as response:
            raw = await self._read(response)
        if response.status_code not in accept:
            raise self._refusal(response, raw)
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            kind = response.headers.get("content-type", "an answer of no declared type")
            raise self._unexpected(path, kind, "a JSON object", response.status_code)
        return answer

    async def _read(self, response: "httpx.Response") -> bytes:
        return b"".join([part async for part in self._within_bounds(response)])

    async def _within_bounds(self, response: "httpx.Response") -> AsyncIterator[bytes]:
        received = 0
        async for part in response.aiter_bytes():
            received += len(part)
            if received > MAX_ANSWER_BYTES:
                raise EngineUnavailable(f"{self.name} sent more than {MAX_ANSWER_BYTES} bytes.")
            yield part

    def _unexpected(self, path: str, kind: str, wanted: str, status: int) -> Refused:
        message = f"{self.name} answered {path} with {kind}, not with {wanted}"
        return Refused(f"{message}: is the address right?", status)

    def _failure(self, event: dict[str, Any]) -> Exception:
        """Return the exception for an error that came after the answer had begun."""
        said, kind = _error_in(json.dumps(event).encode())
        if kind == "superseded":
            return Superseded(said)
        return EngineUnavailable(f"{self.name} gave up in the middle: {said or 'no reason given'}")

    def _refusal(self, response: "httpx.Response", raw: bytes) -> Exception:
        """Return the exception that says what an HTTP error means and what to do."""
        status = response.status_code
        said, kind = _error_in(raw)
        if status == 409 and kind == "superseded":
            return Superseded(said)
        if kind == "unknown_context":
            return UnknownContext(said)
        if kind == "no_chat_template":
            return NoChatModel(said)
        if status == 503:
            return Unreachable(f"{self.name} is not ready (HTTP 503): {said or 'no reason given'}")
        if status in (401, 403):
            text = f"{self.name} refuses the token (HTTP {status}): check `engine.token`."
        elif status == 404:
            text = f"{self.name} has no {response.request.url.path} (HTTP 404): check `engine.url`."
            text += f" It says: {said}" if said else ""
        elif 300 <= status < 400:
            target = response.headers.get("location", "elsewhere")
            text = f"{self.name} redirects to {target}: set `engine.url` to the final address."
        else:
            remedy = _REMEDIES.get(status, _FAILED if status >= 500 else _REFUSED)
            reason = f": {said.rstrip('.')}" if said else ""
            text = f"{self.name} answered HTTP {status}{reason}. {remedy}"
        return Refused(text, status)


_REFUSED = "Its own log may say more."
_FAILED = "Its own log may say why; try again later, or set `engine.url` to another server."
_REMEDIES = {
    429: "It is asked too often: try again later, or set `engine.url` to another server.",
    501: "It does not do what is asked: set `engine.url` to a server that is OpenAI-compatible.",
}
"""By HTTP status; of the others, by whose fault it is."""


async def load_http_library() -> None:
    """Import httpx off the event loop, so that nothing waits for it."""
    await asyncio.to_thread(__import__, "httpx")


def is_loopback(url: str) -> bool:
    """Return whether `url` names this machine itself."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _events_in(parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON objects of a stream of server-sent events, up to `[DONE]`.

    Of the protocol only what these interfaces use: data on one line, and comments.
    """
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event


def object_in(value: object) -> dict[str, Any]:
    """Return an object another program sent, an empty one where it sent none."""
    return value if isinstance(value, dict) else {}


def count_in(value: object) -> int:
    """Return a count another program sent, 0 where it sent none."""
    return value if isinstance(value, int) else 0


def _encoded(body: dict[str, Any] | None) -> bytes | None:
    """Return `body` as UTF-8; half a surrogate pair, which an editor may send, becomes "?"."""
    if body is None:
        return None
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _error_in(raw: bytes) -> tuple[str, str]:
    """Return (message, type) from an OpenAI-shaped, FastAPI-shaped or plain error body."""
    try:
        body = json.loads(raw)
    except ValueError:
        # A page of HTML helps nobody; a short plain text might.
        text = raw.decode("utf-8", "replace").strip()
        return ("" if text.startswith("<") else text[:200]), ""
    error = body.get("error", body.get("detail", "")) if isinstance(body, dict) else body
    if isinstance(error, dict):
        return str(error.get("message", ""))[:500], str(error.get("type", ""))
    return (error if isinstance(error, str) else json.dumps(error))[:500], ""
