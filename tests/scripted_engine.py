"""Our engine with a script in the place of the model's tokens: its HTTP, template and formats."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from qcn_inference.request import Chunk, Finished, GenerationRequest
from qcn_inference.scheduler import Priority
from qcn_inference.service.activity import Activity
from qcn_inference.service.app import create_app
from qcn_inference.service.engine import CacheBudgets, Engine
from qcn_inference.service.running import Running

PIECE = 7  # characters of an answer that come at once: no mark of the format comes whole


class ScriptedEngine(Engine):
    """Answers a prompt, as text with its control tokens, by `script`."""

    script: Callable[[str], str]

    def __init__(self, folder: Path, script: Callable[[str], str]) -> None:
        super().__init__(folder, folder.name, 1, Activity(), CacheBudgets(disk=0))
        self.script = script

    def submit(
        self, request: GenerationRequest, priority: Priority, supersede: str | None
    ) -> Running:
        prompt = request.prompt()
        answer = self.script(self.ready().tokenizer.decode([*prompt.ids]))
        running, future = Running(), Future[Finished]()
        for at in range(0, len(answer), PIECE):
            running.emit(Chunk(answer[at : at + PIECE]))
        counts: dict[str, Any] = dict.fromkeys(
            ("cached_tokens", "context_tokens", "drafted_tokens", "accepted_tokens"), 0
        )
        future.set_result(
            Finished(
                reason="eos",
                stopping_word="",
                prompt_tokens=len(prompt.ids),
                completion_tokens=len(answer),
                truncated=False,
                prompt_seconds=0.0,
                predicted_seconds=0.0,
                **counts,
            )
        )
        running.follow(future)
        return running


@contextmanager
def scripted_engine(folder: Path, script: Callable[[str], str]) -> Iterator[str]:
    """Serve on a loopback port while the block runs; gives the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config("", log_level="warning", lifespan="off"))
    ready, failed = threading.Event(), list[BaseException]()

    async def serve() -> None:
        engine = ScriptedEngine(folder, script)
        engine.start()
        server.config.app = create_app(engine, token=None, leave=lambda *, at_once: None)
        await engine.settled.wait()
        ready.set()
        try:
            await server.serve(sockets=[listener])
        finally:
            await asyncio.to_thread(engine.close)
            await engine.close_renderer()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
            ready.set()
            raise

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        assert not failed
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
