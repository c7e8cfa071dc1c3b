"""The application: which call is answered where."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from qcn_inference.service.activity import Activity
from qcn_inference.service.chat import post_chat_completions
from qcn_inference.service.completions import post_completions
from qcn_inference.service.contexts import (
    delete_context,
    delete_contexts,
    get_context,
    put_context,
)
from qcn_inference.service.engine import Engine
from qcn_inference.service.errors import ApiError
from qcn_inference.service.guard import Guard
from qcn_inference.service.infill import post_infill
from qcn_inference.service.status import get_health, get_metrics, get_models, post_shutdown
from qcn_inference.service.tokens import post_detokenize, post_tokenize

Endpoint = Callable[[Request], Awaitable[Response]]


class Leave(Protocol):
    """Makes the process leave."""

    def __call__(self, *, at_once: bool) -> None:
        """Leave when no request is being served, or at once."""


def create_app(engine: Engine, *, token: str | None, leave: Leave) -> Guard:
    """The ASGI application; `token` is asked for unless None."""
    app = Starlette(
        routes=[
            Route("/health", get_health),
            Route("/v1/models", get_models),
            Route("/metrics", get_metrics),
            Route("/shutdown", post_shutdown, methods=["POST"]),
            _work("/v1/completions", post_completions, engine.activity),
            _work("/v1/chat/completions", post_chat_completions, engine.activity),
            _work("/infill", post_infill, engine.activity),
            _work("/v1/contexts", delete_contexts, engine.activity, method="DELETE"),
            _work("/v1/contexts/{id}", put_context, engine.activity, method="PUT"),
            _work("/v1/contexts/{id}", get_context, engine.activity, method="GET"),
            _work("/v1/contexts/{id}", delete_context, engine.activity, method="DELETE"),
            _work("/tokenize", post_tokenize, engine.activity),
            _work("/detokenize", post_detokenize, engine.activity),
        ],
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_error,
        },
    )
    app.state.engine = engine
    app.state.leave = leave
    return Guard(app, token)


def _work(path: str, endpoint: Endpoint, activity: Activity, method: str = "POST") -> Route:
    """A call that counts as use of the engine, for as long as it is being answered."""
    return Route(path, endpoint, methods=[method], middleware=[Middleware(_Counted, activity)])


class _Counted:
    def __init__(self, app: ASGIApp, activity: Activity) -> None:
        self._app = app
        self._activity = activity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._activity.use():
            await self._app(scope, receive, send)


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    """No such call, or not by this method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, "invalid_request_error", message, error.headers).response()


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody is there to read it


async def _on_error(_: Request, error: Exception) -> Response:
    return ApiError(
        500, "internal_error", f"the request failed ({type(error).__name__})"
    ).response()
