"""The fixtures of the feature tests: the real server, and a model that answers as it is told.

Starting a server takes longer than most tests, so each client's server is shared by the tests of
a session. Each test has a model of its own, whose address is a new setting: nothing the server
keeps from another test, neither answers nor its link to the engine, applies to it.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest
import pytest_asyncio
from fake_editor import FakeEditor, capabilities, fake_editor
from scripted_model import ScriptedModel, scripted_model


class Start(Protocol):
    async def __call__(
        self, client: str = "vscode", *, ready: bool = True, **settings: Any
    ) -> FakeEditor:
        """Return a session of `client`, freshly configured and without documents.

        `ready`: with the link to the model already made, so that no request finds it missing.
        """


@pytest_asyncio.fixture(loop_scope="session")
async def model() -> AsyncIterator[ScriptedModel]:
    async with scripted_model() as served:
        yield served


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sessions(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator["Sessions"]:
    async with AsyncExitStack() as running:
        yield Sessions(running, tmp_path_factory)


class Sessions:
    """The shared servers, one for each client, started when first asked for."""

    def __init__(self, running: AsyncExitStack, folders: pytest.TempPathFactory) -> None:
        self._running = running
        self._folders = folders
        self._editors: dict[str, FakeEditor] = {}

    async def of(self, client: str) -> FakeEditor:
        if client not in self._editors:
            root = self._folders.mktemp(client) / "shop"
            root.mkdir()
            session = fake_editor(root, capabilities(client), {})
            self._editors[client] = await self._running.enter_async_context(session)
        return self._editors[client]


@pytest_asyncio.fixture(loop_scope="session")
async def start(model: ScriptedModel, sessions: Sessions) -> Start:
    async def begin(client: str = "vscode", *, ready: bool = True, **settings: Any) -> FakeEditor:
        editor = await sessions.of(client)
        editor.close_all()
        await editor.configure({"engine": {"url": model.url}, **settings})
        if ready and "engine" not in settings:
            model.text = "1"
            await editor.open("first.py", "first = ").inline()
            editor.close_all()
            model.text = None
            model.prompts.clear()
        editor.statuses.clear()
        editor.client.messages.clear()
        editor.client.shown_documents.clear()
        editor.edits.clear()
        while not editor.refreshed.empty():
            editor.refreshed.get_nowait()
        editor.refuses_edits = False
        return editor

    return begin
