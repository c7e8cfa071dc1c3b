"""A stand-in for `python -m qcn_inference serve`: the engine's interface without a model.

Its model folder says how it behaves: `standin.json` may set what `/health` answers (version,
protocol, state, error, device_problem, active_requests), how many health checks it spends
loading, an exit code to leave with at once (-9: killed), and what `/infill` does: answer, hang, or
die. It writes what happens to `events.jsonl` there.
"""

import argparse
import json
import os
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


class StandIn:
    def __init__(self, folder: Path, token: str | None) -> None:
        self.folder = folder
        self.token = token
        self.health_checks = 0
        self.server: uvicorn.Server | None = None
        folder.mkdir(exist_ok=True)  # `qcn-nano`, a name, is a folder where the engine runs
        file = folder / "standin.json"
        self.behaviour: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def note(self, event: str, **details: object) -> None:
        line = json.dumps({"event": event, "pid": os.getpid(), **details})
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(line + "\n")

    async def health(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        behaviour = self.behaviour
        loading = behaviour.get("loading_checks", 0)
        self.health_checks += 1
        state = "loading" if self.health_checks <= loading else behaviour.get("state", "ready")
        body = {
            "server": "qcn-engine",
            "version": behaviour.get("version", metadata.version("qcn-lsp")),
            "protocol": behaviour.get("protocol", 1),
            "state": state,
            "model": self.folder.name,
            "model_path": str(self.folder),
            "progress": {"done": self.health_checks, "total": loading} if loading else None,
            "error": behaviour.get("error"),
            "device_problem": behaviour.get("device_problem"),
            "context_length": 4096,
            "pid": os.getpid(),
            "active_requests": behaviour.get("active_requests", 0),
            "idle_seconds": 0.0,
        }
        return JSONResponse(body, status_code=200 if state == "ready" else 503)

    async def infill(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        body = await request.json()
        self.note("infill", body=body)
        match self.behaviour.get("infill", "answer"):
            case "be late":
                self.behaviour["infill"] = "answer"
                error = {"message": "loading", "type": "not_ready", "code": 503}
                return JSONResponse({"error": error}, status_code=503)
            case "die":
                os._exit(3)
            case "hang":
                while (await request.receive())["type"] != "http.disconnect":
                    pass
                self.note("disconnected")
                return Response()
            case "supersede":
                error = {"message": "a newer request came", "type": "superseded", "code": 409}
                return JSONResponse({"error": error}, status_code=409)
        answer = {
            "content": "answer",
            "stop": True,
            "stop_type": "limit" if body["n_predict"] == 1 else "eos",
            "tokens_predicted": 2,
            "tokens_evaluated": 10,
            "tokens_cached": 4,
        }
        return JSONResponse(answer)

    async def shutdown(self, request: Request) -> Response:
        body = await request.json()
        self.note("shutdown", when=body["when"])
        if self.server is not None:
            self.server.should_exit = True
        return JSONResponse({}, status_code=202)

    def refused(self, request: Request) -> Response | None:
        if self.token is None or request.headers.get("authorization") == f"Bearer {self.token}":
            return None
        return JSONResponse({"error": {"message": "bad token"}}, status_code=401)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--socket")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--idle-minutes", type=float)
    parser.add_argument("--device")
    parser.add_argument("--device-memory-mib")
    parser.add_argument("--kv-cache-dtype")
    parser.add_argument("--beside")
    parser.add_argument("--cache-mib", type=int)
    parser.add_argument("--disk-cache-mib", type=int)
    options = parser.parse_args()
    token = options.token_file.read_text() if options.token_file else None
    standin = StandIn(options.model, token)
    standin.note("started", path=sys.path, cwd=str(Path.cwd()), arguments=sys.argv[2:])
    if (code := standin.behaviour.get("exit")) is not None:
        print("the stand-in gives up", file=sys.stderr, flush=True)
        if code < 0:
            os.kill(os.getpid(), -code)
        sys.exit(code)
    app = Starlette(
        routes=[
            Route("/health", standin.health),
            Route("/infill", standin.infill, methods=["POST"]),
            Route("/shutdown", standin.shutdown, methods=["POST"]),
        ]
    )
    standin.server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    if options.socket:
        listener = socket.socket(socket.AF_UNIX)
        Path(options.socket).unlink(missing_ok=True)
        listener.bind(options.socket)
    else:
        listener = socket.create_server((options.host, options.port))
    standin.server.run(sockets=[listener])
    # The socket's file stays: by now it may be that of the engine which has taken this one's place.


if __name__ == "__main__":
    main()
