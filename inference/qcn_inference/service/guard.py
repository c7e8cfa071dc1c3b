"""What every request passes before a handler sees it: who asks, under which name, and how much.

A page in the user's browser can send requests to loopback, also under a name of its own that it
lets resolve to 127.0.0.1 (DNS rebinding). So over TCP the `Host` must be a loopback name, and a
bearer token is asked for. No CORS header is ever sent. On the Unix socket the file's mode has
answered the question of who.

It is also the last to see an error that no handler expected: uvicorn would log its message, which
might quote a prompt.
"""

import hmac
import logging
import re
import traceback

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qcn_inference.service.errors import ApiError
from qcn_inference.service.listen import is_loopback

log = logging.getLogger(__name__)

# A context of 262,144 tokens of code is about 1 MB.
MAX_BODY_BYTES = 16 * 2**20
HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:[0-9]+)?")


class Guard:
    """ASGI middleware. With `token`, checks it and the `Host` of every request."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with what is wrong."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if self._token is not None:
                _check_host(headers)
                _check_token(headers, self._token)
            _check_length(headers)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        try:
            await self._app(scope, _limited(receive), send)
        except Exception as error:
            log.error("a request failed:\n%s", without_message(error))


def without_message(error: BaseException) -> str:
    """The traceback of an error without its message."""
    return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__


def _check_host(headers: Headers) -> None:
    hosts = headers.getlist("host")
    match = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is None or not is_loopback(match["name"]):
        raise ApiError(
            403, "permission_error", "the Host header must be a loopback name, such as 127.0.0.1"
        )


def _check_token(headers: Headers, token: bytes) -> None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token):
        raise ApiError(
            401,
            "authentication_error",
            "give the engine's token in the header Authorization: Bearer",
            {"WWW-Authenticate": "Bearer"},
        )


def _too_large() -> ApiError:
    return ApiError(
        413,
        "invalid_request_error",
        f"the body is larger than {MAX_BODY_BYTES} bytes",
        {"Connection": "close"},
    )


def _check_length(headers: Headers) -> None:
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise _too_large()


def _limited(receive: Receive) -> Receive:
    """`receive`, which raises once a body without a declared length has grown too large."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise _too_large()
        return message

    return limited
