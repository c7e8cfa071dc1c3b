"""Attaching to the endpoint named by `engine.url`: our own engine elsewhere, or anybody's.

Never starts a process. What answers decides the dialect: our engine says so on `/health` and is
asked through `/infill`; everything else through `/v1/completions`.
"""

import asyncio
import logging
from urllib.parse import urlsplit, urlunsplit

from qcn_lsp.engine.client import HttpClient, is_loopback
from qcn_lsp.engine.dialects import Health, OpenAIEndpoint, OwnEngine, engine_health
from qcn_lsp.engine.local import Report
from qcn_lsp.engine.messages import (
    Completer,
    EngineState,
    EngineStatus,
    EngineUnavailable,
    Refused,
)

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 30.0
POLL_SECONDS = 0.5


class RemoteEndpoint:
    """An HTTP endpoint of the user's choice; `model` is the name to ask it for, if it has it."""

    def __init__(self, url: str, *, token: str | None, model: str) -> None:
        self.root, self.prefix = split_url(url)
        self._token = token
        self._model = model

    async def attach(self, report: Report) -> Completer:
        """Return a client of the endpoint; raises `EngineUnavailable` when it cannot be used."""
        report(EngineStatus(EngineState.STARTING, f"Connecting to {self.root}"))
        if self._token and self.root.startswith("http:") and not is_loopback(self.root):
            logger.warning("the token travels unencrypted to %s: use https", self.root)
        client = HttpClient(
            self.root,
            name=f"The endpoint {self.root}",
            token=self._token,
            answer_seconds=ANSWER_SECONDS,
        )
        try:
            if (health := await engine_health(client)) is not None:
                return await self._own_engine(client, health, report)
            return OpenAIEndpoint(client, await self._choose_model(client), self.prefix)
        except BaseException:
            await client.close()
            raise

    async def _own_engine(self, client: HttpClient, health: Health, report: Report) -> OwnEngine:
        """Return our engine once its model is loaded."""
        while health.state != "ready":
            if health.state == "errored":
                raise EngineUnavailable(health.error or f"{client.name} could not read its model.")
            report(
                EngineStatus(
                    EngineState.LOADING,
                    f"{client.name} loads its model",
                    health.model,
                    health.done,
                    health.total,
                )
            )
            await asyncio.sleep(POLL_SECONDS)
            now = await engine_health(client)
            if now is None:
                raise EngineUnavailable(f"{client.name} is our engine no more.")
            health = now
        return OwnEngine(client, health.model, infills=health.infills)

    async def _choose_model(self, client: HttpClient) -> str | None:
        """Return the model to ask for: the one that is set when it is offered, else the first."""
        try:
            answer = await client.get(f"{self.prefix}/models")
        except Refused as refusal:
            if refusal.status not in (404, 405, 501):
                raise
            return self._model  # an endpoint without a list; its answer to a completion will tell
        listed = answer.get("data")
        names = [
            model["id"]
            for model in (listed if isinstance(listed, list) else [])
            if isinstance(model, dict) and isinstance(model.get("id"), str)
        ]
        if not names or self._model in names:
            return self._model
        logger.info("%s has no model %r; using %r", client.name, self._model, names[0])
        return str(names[0])

    async def ending(self) -> str:
        """Return nothing: another machine's log is not ours to read."""
        return ""


def split_url(url: str) -> tuple[str, str]:
    """Return (root, API prefix) of an endpoint given with or without `/v1` or `/completions`.

    `http://h:1/v1/` → (`http://h:1`, `/v1`); `http://h:1/proxy` → (`http://h:1/proxy`, `/v1`).
    Raises `EngineUnavailable` for what is not an http or https address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EngineUnavailable(f"`engine.url` is not an http or https address: {url}")
    path = parts.path.rstrip("/")
    for end in ("/completions", "/chat", "/v1"):
        path = path.removesuffix(end)
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), "/v1"
