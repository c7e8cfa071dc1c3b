"""The repository in front of a chat: begun by the first chat, used once the engine has read it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from deadlines import DEADLINE_SECONDS
from lsprotocol import types
from scripted_model import ScriptedModel, scripted_model

from qcn_lsp.context.chats import chat_in
from qcn_lsp.engine.messages import ChatMessage, ChatRequest
from qcn_lsp.server import QcnServer, create_server
from qcn_lsp.settings import parse_settings

ASK = ChatRequest((ChatMessage("user", "What does f do?"),))
CHAT = "/v1/chat/completions"


@dataclass
class Session:
    """A server without a client, whose chat model is the scripted one."""

    server: QcnServer
    model: ScriptedModel
    root: Path

    async def ask(self) -> str | None:
        """Chat; return the context that was named."""
        await chat_in(self.server, self.root, ASK)
        context = self.model.bodies[-1].get("context")
        assert context is None or isinstance(context, str)
        return context

    async def until_read(self) -> str:
        """Chat until the repository stands in front; return its context."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (context := await self.ask()) is None:
                pass
        return context


@pytest.fixture
async def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Session]:
    root = tmp_path / "shop"
    root.mkdir()
    (root / "a.py").write_text("def f():\n    return 1\n")
    (root / ".env").write_text("PASSWORD=hunter2\n")
    server = create_server()
    server.workspace_roots = [root]
    monkeypatch.setattr(type(server), "client_watches_files", True)
    monkeypatch.setattr(server.status, "progress_bar", lambda *_: None)
    monkeypatch.setattr(server.status, "engine_changed", lambda *_: None)
    async with scripted_model() as model:
        model.health = {"state": "ready", "model": "scripted", "context_limit": 20_000}
        model.text = "It returns 1."
        server.settings, problems = parse_settings({"engine": {"url": model.url}})
        assert problems == []
        yield Session(server, model, root)
        await server.close()


async def test_the_first_chat_has_it_read_and_later_ones_stand_behind_it(session: Session) -> None:
    assert await session.ask() is None
    context = await session.until_read()
    assert [path for path, _, _ in session.model.layouts[context]] == ["a.py"]
    assert session.model.dialects[context] == "chat"


async def test_a_chat_right_after_a_change_in_a_buffer_sees_it(session: Session) -> None:
    await session.until_read()
    uri = (session.root / "a.py").as_uri()
    text = "def f():\n    return 2\n"
    session.server.documents.open(types.TextDocumentItem(uri, "python", 1, text))
    context = await session.ask()
    assert context is not None
    assert ("a.py", text) in [one[:2] for one in session.model.layouts[context]]


async def test_while_it_is_being_read_chats_are_answered_without(session: Session) -> None:
    await session.until_read()
    session.model.read = 0
    assert await session.ask() is None
    session.model.read = None
    assert await session.ask() is not None


async def test_an_engine_that_lost_it_is_given_it_again(session: Session) -> None:
    context = await session.until_read()
    session.model.forget()
    assert await session.ask() is None
    assert await session.until_read() == context


async def test_no_repository_is_read_where_the_user_wants_none(session: Session) -> None:
    settings = {"engine": {"url": session.model.url}, "context": {"repository": False}}
    session.server.settings, _ = parse_settings(settings)
    for _ in range(3):
        assert await session.ask() is None
    assert session.model.layouts == {}
