"""What a view of the server is drawn from: `qcn/state`, `qcn/skipped`, and outcomes counted."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fake_editor import FakeEditor, capabilities, fake_editor
from pygls.exceptions import JsonRpcException
from scripted_model import scripted_model

from qcn_lsp.commands.session import plain_json


async def ask(editor: FakeEditor, method: str, params: dict[str, Any] | None = None) -> Any:
    protocol: Any = editor.client.protocol  # pygls leaves its requests untyped
    return plain_json(await protocol.send_request_async(method, params or {}))


async def test_the_state_tells_how_completions_went_and_begins_nothing(tmp_path: Path) -> None:
    async with scripted_model() as model:
        model.health, model.text = {"state": "ready", "model": "scripted"}, "1"
        settings = {"engine": {"url": model.url}, "models": {"completion": "scripted"}}
        async with fake_editor(tmp_path, capabilities("minimal"), settings) as editor:
            state = await ask(editor, "qcn/state")
            assert state["status"] == {"busy": False, "kind": "Normal", "message": ""}
            assert state["model"] == "scripted"
            assert state["roots"] == [{"uri": tmp_path.as_uri(), "name": tmp_path.name}]
            assert state["completions"] == {
                "accepted": 0,
                "rejected": 0,
                "milliseconds": [],
                "refused": None,
            }
            assert model.bodies == []

            assert await editor.open("a.py", "total = ‸\n").ghost() == "total = 1‸\n"
            for outcome in ("accepted", "rejected", "rejected", "framed"):
                editor.client.protocol.notify("qcn/completionOutcome", {"outcome": outcome})
            editor.client.protocol.notify("qcn/completionOutcome", [])
            completions = (await ask(editor, "qcn/state"))["completions"]
            assert (completions["accepted"], completions["rejected"]) == (1, 2)
            [took] = completions["milliseconds"]
            assert took > 0


async def test_the_state_tells_why_the_last_completion_was_not_asked_of_the_model(
    tmp_path: Path,
) -> None:
    async with scripted_model() as model:
        model.health, model.text = {"state": "ready", "model": "scripted"}, "1"
        settings = {"engine": {"url": model.url}, "completion": {"excludedLanguages": ["rust"]}}
        async with fake_editor(tmp_path, capabilities("minimal"), settings) as editor:
            for language, reason in (("rust", "the language rust is excluded"), ("python", None)):
                await editor.open(language, "total = ‸\n", language).ghost()
                assert (await ask(editor, "qcn/state"))["completions"]["refused"] == reason


async def test_the_state_tells_how_full_the_context_is(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("total = 1\n" * 30)
    async with scripted_model() as model:
        model.health = {"state": "ready", "model": "scripted", "context_limit": 20_000}
        model.text = "1"
        settings = {"engine": {"url": model.url}}
        async with fake_editor(tmp_path, capabilities("minimal"), settings) as editor:
            buffer = editor.open("b.py", "total = ‸\n")
            while not (root := (await ask(editor, "qcn/state"))["roots"][0]).get("tokens"):
                buffer.type("x")
                await buffer.inline()
                await asyncio.sleep(0)
            assert 0 < root["tokens"] <= root["limit"] <= 20_000


async def test_what_is_never_read_is_told_by_reasons(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PASSWORD=hunter2\n")
    for number in range(60):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG\0")
    async with fake_editor(tmp_path, capabilities("minimal"), {}) as editor:
        binary, secret = await ask(editor, "qcn/skipped", {"uri": tmp_path.as_uri()})
        assert "binary" in binary["reason"]
        assert (binary["count"], len(binary["examples"])) == (60, 50)
        assert secret["examples"] == [".env"]
        for uri in (None, 5, (tmp_path / "elsewhere").as_uri()):
            with pytest.raises(JsonRpcException, match="workspace folder"):
                await ask(editor, "qcn/skipped", {"uri": uri})
