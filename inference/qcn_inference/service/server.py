"""The process from its socket to its end: answers, loads, leaves."""

import asyncio
import logging
import socket
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from qcn_inference.service.activity import Activity
from qcn_inference.service.app import create_app
from qcn_inference.service.engine import CacheBudgets, Engine

log = logging.getLogger(__name__)

# An editor's connection is kept between two bursts of typing: closing it costs the next request.
KEEP_ALIVE_SECONDS = 600
# How long requests that have been ended may take to be answered.
GRACE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What is served, and for how long."""

    model_folder: Path
    model_name: str
    idle_minutes: float  # leave when unused for as long; inf never does
    threads: int | None  # CPU threads of the model; None leaves the choice to torch
    budgets: CacheBudgets
    device: str = "auto"
    beside: Path | None = None  # another model's folder, for which a GPU must have room as well


async def serve(options: ServeOptions, listener: socket.socket, token: str | None) -> None:
    """Serve on `listener` until told to leave, or unused for too long."""
    activity = Activity()
    engine = Engine(
        options.model_folder,
        options.model_name,
        options.threads,
        activity,
        options.budgets,
        options.device,
        options.beside,
    )
    leaving = _Leaving(activity)
    app = create_app(engine, token=token, leave=leaving.leave)
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = _Server(config, engine)
    leaving.server = server
    engine.start()
    log.info("listening on %s", _address(listener))
    idle = asyncio.create_task(_leave_when_unused(engine, options.idle_minutes * 60, leaving))
    try:
        await server.serve(sockets=[listener])
    finally:  # also when a signal ended it
        idle.cancel()
        log.info("left")


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"


class _Server(uvicorn.Server):
    """uvicorn, which ends what is under way before it waits for the answers to be sent."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, end what is under way, answer it."""
        await asyncio.to_thread(self._engine.close)
        await self._engine.close_renderer()
        await super().shutdown(sockets)


class _Leaving:
    """The one way out for all but signals."""

    def __init__(self, activity: Activity) -> None:
        self.server: uvicorn.Server | None = None
        self._activity = activity
        self._waiting: asyncio.Task[None] | None = None

    def leave(self, *, at_once: bool) -> None:
        """Leave now, or when no request is being served."""
        if at_once:
            self._exit()
        elif self._waiting is None:
            self._waiting = asyncio.create_task(self._when_unused())

    async def _when_unused(self) -> None:
        await self._activity.unused.wait()
        self._exit()

    def _exit(self) -> None:
        assert self.server is not None
        self.server.should_exit = True


async def _leave_when_unused(engine: Engine, seconds: float, leaving: _Leaving) -> None:
    """Leave once no request has been served for `seconds`. Loading is not idling, nor is reading
    a context for which nobody waits."""
    while True:
        await engine.settled.wait()
        await engine.activity.unused.wait()
        if engine.scheduler.live_jobs:
            engine.activity.touch()
        left = seconds - engine.activity.idle_seconds
        if left <= 0 and not engine.activity.active:
            log.info("unused for %.0f seconds: leaving", engine.activity.idle_seconds)
            leaving.leave(at_once=False)
            return
        await asyncio.sleep(min(left, 3600.0))
