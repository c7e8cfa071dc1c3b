"""An endpoint in the test's own event loop, answering when the test says so.

It speaks OpenAI's dialect, or, once `health` is set, that of our own engine.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote


class Asked:
    """One request for a completion or a chat: what it holds, and the means to answer it."""

    def __init__(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.body = body
        self.gone = asyncio.Event()
        """Set once the client has closed the connection."""
        self._writer = writer
        self._begun = False

    @property
    def prompt(self) -> str:
        """What is to be completed; of a chat the turns' texts, one below the other."""
        if (messages := self.body.get("messages")) is not None:
            return "\n".join(message["content"] for message in messages)
        return str(self.body.get("prompt"))

    def answer(self, text: str, finish_reason: str = "stop") -> None:
        if "messages" in self.body:
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
            send_events(self._writer, {"choices": [choice], "usage": {}})
            return
        choice = {"index": 0, "text": text, "finish_reason": finish_reason}
        infill = {"content": text, "stop_type": {"length": "limit"}.get(finish_reason, "eos")}
        send(self._writer, 200, {"choices": [choice], "usage": {}, **infill})

    def stream(self, text: str) -> None:
        """Answer a chat character by character, as a model does token by token."""
        self.write(text)
        self._send({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {}})
        finish(self._writer)

    def write(self, text: str) -> None:
        """Answer a chat with so much, character by character, and more to come."""
        choices = [{"index": 0, "delta": {"content": one}} for one in text]
        self._send(*({"choices": [one], "usage": {}} for one in choices))

    def read(self, done: int, total: int) -> None:
        """Say how far the prompt is read, as our engine does, before anything is written."""
        progress = {"processed": done, "cache": 0, "total": total}
        self._send({"choices": [], "prompt_progress": progress})

    def _send(self, *events: dict[str, Any]) -> None:
        if not self._begun:
            begin_events(self._writer)
        self._begun = True
        write_events(self._writer, *events)

    def fail(self, status: int, message: str, kind: str = "x") -> None:
        send(self._writer, status, {"error": {"message": message, "type": kind, "code": status}})

    def hang_up(self) -> None:
        """Die behind what was written."""
        self._writer.close()

    def break_off(self) -> None:
        """Die in the middle of the answer."""
        self._writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{")
        self._writer.close()


class ScriptedModel:
    """The endpoint. With `text` set it answers at once; with None each request waits in `asked`."""

    def __init__(self) -> None:
        self.url = ""
        self.text: str | None = None
        self.health: dict[str, Any] | None = None
        self.asked: asyncio.Queue[Asked] = asyncio.Queue()
        self.prompts: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.layouts: dict[str, list[tuple[str, str, str]]] = {}
        """The contexts that it was given: (path, text, zone) of each segment, in their order."""
        self.superseded: dict[str, list[list[list[int]]]] = {}
        """Of those the spans of lines of each segment that are said to be no longer so."""
        self.dialects: dict[str, str] = {}
        self.counted: list[str] = []
        """The texts whose tokens it was asked to count."""
        self.sent: list[list[str]] = []
        """Of each layout that it was given the paths of the segments that came with their text."""
        self.deleted: list[str] = []
        self.deleted_repositories: list[str] = []
        self.read: int | None = None
        """How many segments of a context, of one token each, it says to have read; None: all."""
        self._texts: dict[str, str] = {}

    def forget(self) -> None:
        """Lose all contexts, as an engine that was started anew."""
        self.layouts.clear()
        self._texts.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        if path.startswith("/v1/contexts/"):
            await self._keep_context(method, path, head, reader, writer)
        elif path == "/tokenize":
            body = await body_of(head, reader)
            self.counted.append(body["content"])
            send(writer, 200, {"count": len(body["content"]) // 4})
        elif path == "/health" and self.health is not None:
            ready = self.health["state"] == "ready"
            send(
                writer,
                200 if ready else 503,
                {"server": "qcn-engine", "protocol": 1, **self.health},
            )
        elif path == "/v1/models":
            send(writer, 200, {"data": [{"id": "scripted"}]})
        elif path not in ("/v1/completions", "/infill", "/v1/chat/completions"):
            send(writer, 404, {"detail": "Not Found"})
        else:
            body = await body_of(head, reader)
            asked = Asked(body, writer)
            self.prompts.append(asked.prompt)
            self.bodies.append(body)
            if body.get("context", "") not in ("", *self.layouts):
                error = {"message": "unknown", "type": "unknown_context", "code": 404}
                send(writer, 404, {"error": error})
            elif self.text is not None:
                asked.answer(self.text)
            else:
                self.asked.put_nowait(asked)
            while await reader.read(1024):
                pass
            asked.gone.set()
        writer.close()

    async def _keep_context(
        self,
        method: str,
        path: str,
        head: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        named, _, said = path.rpartition("/")[2].partition("?repo=")
        name = unquote(named)
        if method == "DELETE":
            self.deleted.append(name)
            self.deleted_repositories.append(unquote(said))
            self.forget()
            send(writer, 200, {"deleted": True})
            return
        if method == "GET" and name not in self.layouts:
            error = {"message": "unknown", "type": "unknown_context", "code": 404}
            send(writer, 404, {"error": error})
            return
        if method == "GET":
            send(writer, 200, self._described(name))
            return
        body = await body_of(head, reader)
        segments = body["segments"]
        self.sent.append([part["path"] for part in segments if "text" in part])
        self._texts |= {part["hash"]: part["text"] for part in segments if "text" in part}
        if missing := [part["hash"] for part in segments if part["hash"] not in self._texts]:
            error = {"message": "missing", "type": "missing_segments", "code": 409}
            send(writer, 409, {"error": error, "missing": missing})
            return
        self.dialects[name] = body["dialect"]
        self.layouts[name] = [
            (part["path"], self._texts[part["hash"]], part["zone"]) for part in segments
        ]
        self.superseded[name] = [part.get("superseded", []) for part in segments]
        send(writer, 202, {"tokens": 1})

    def _described(self, name: str) -> dict[str, Any]:
        layout = self.layouts[name]
        segments = [
            {"path": path, "zone": zone, "start": start, "tokens": 1}
            for start, (path, _, zone) in enumerate(layout)
        ]
        read = len(layout) if self.read is None else self.read
        return {
            "tokens": len(layout),
            "segments": segments,
            "checkpoints": list(range(read + 1)),
            "reading": read < len(layout),
        }


@asynccontextmanager
async def scripted_model() -> AsyncIterator[ScriptedModel]:
    """Run the endpoint on a loopback port while the block runs."""
    model = ScriptedModel()
    server = await asyncio.start_server(model.serve, "127.0.0.1", 0)
    model.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield model
    finally:
        server.close()


async def body_of(head: str, reader: asyncio.StreamReader) -> dict[str, Any]:
    headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    body: dict[str, Any] = json.loads(await reader.readexactly(int(headers["content-length"])))
    return body


def send_events(writer: asyncio.StreamWriter, *events: dict[str, Any]) -> None:
    begin_events(writer)
    write_events(writer, *events)
    finish(writer)


def begin_events(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")


def write_events(writer: asyncio.StreamWriter, *events: dict[str, Any]) -> None:
    for event in events:
        writer.write(f"data: {json.dumps(event)}\n\n".encode())


def finish(writer: asyncio.StreamWriter) -> None:
    writer.write(b"data: [DONE]\n\n")
    if writer.can_write_eof():
        writer.write_eof()


def send(writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    if writer.can_write_eof():
        writer.write_eof()
