"""`GET /health`, `/v1/models`, `/metrics` and `POST /shutdown`: what the engine is doing, and that
it may go.

None of these counts as use: a monitor must not keep an engine alive.
"""

import os
from importlib.metadata import version

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qcn_inference.contexts import context_limit
from qcn_inference.service.engine import EngineState
from qcn_inference.service.http import engine_of, read_body
from qcn_inference.service.schemas import ShutdownBody

# Raised when a client of an older version could no longer talk to this engine.
PROTOCOL = 1


async def get_health(request: Request) -> Response:
    """The engine's state: 200 when it is ready, 503 otherwise, with the same body."""
    engine = engine_of(request)
    # The state first: the model's thread changes it last, when the rest is as that state says.
    state = engine.state
    progress, loaded = engine.progress, engine.loaded
    body = {
        "server": "qcn-engine",
        "version": version("qcn-lsp"),
        "protocol": PROTOCOL,
        "state": state,
        "model": engine.name,
        "model_path": str(engine.folder),
        "progress": None if progress is None else {"done": progress.done, "total": progress.total},
        "device": engine.device,
        "device_problem": engine.device_problem,
        "error": engine.error,
        "disk_cache_problem": None
        if loaded is None or loaded.disk is None
        else loaded.disk.problem,
        "fim": None if loaded is None else loaded.tokenizer.infills,
        "chat_template": None
        if engine.chat_template is None
        else {
            "file": engine.chat_template.path.name,
            "sha256": engine.chat_template.sha256,
        },
        "chat_problem": engine.chat_problem,
        "context_length": None if loaded is None else loaded.context_length,
        "context_limit": None if loaded is None else context_limit(loaded.context_length),
        "pid": os.getpid(),
        "active_requests": engine.activity.active,
        "idle_seconds": engine.activity.idle_seconds,
    }
    return JSONResponse(body, status_code=200 if state is EngineState.READY else 503)


async def get_models(request: Request) -> Response:
    """OpenAI's list, of the one model."""
    model = {"id": engine_of(request).name, "object": "model", "created": 0, "owned_by": "qcn-lsp"}
    return JSONResponse({"object": "list", "data": [model]})


async def get_metrics(request: Request) -> Response:
    """Prometheus text."""
    return Response(engine_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def post_shutdown(request: Request) -> Response:
    """Leave: as soon as no request is being served, or at once."""
    body = await read_body(request, ShutdownBody) if await request.body() else ShutdownBody()
    request.app.state.leave(at_once=body.when == "now")
    return JSONResponse({"when": body.when}, status_code=202)
