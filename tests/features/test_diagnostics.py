"""Findings as diagnostics: asked for by clients that ask, told to the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from deadlines import DEADLINE_SECONDS
from fake_editor import Buffer, FakeEditor, capabilities, fake_editor
from lsprotocol import types

WEAK = "import hashlib\nname = '\U0001f600é'; digest = hashlib.md5(name)\n"
FOUND = "hashlib.md5(name)"
PUSHED = ["emacs-eglot", "minimal"]
PULLED = ["vscode", "neovim", "neovim-0.12"]
ENCODINGS = {"vscode": "utf-16", "neovim": "utf-8", "emacs-eglot": "utf-32"}

Told = asyncio.Queue[types.PublishDiagnosticsParams]


@asynccontextmanager
async def session(
    root: Path, client: str | types.ClientCapabilities, **security: Any
) -> AsyncIterator[FakeEditor]:
    known = capabilities(client) if isinstance(client, str) else client
    async with fake_editor(root, known, {"security": security}) as editor:
        yield editor


async def pull(buffer: Buffer, previous: str | None = None) -> types.DocumentDiagnosticReport:
    return await buffer.editor.client.text_document_diagnostic_async(
        types.DocumentDiagnosticParams(buffer.identifier, previous_result_id=previous)
    )


async def pulled(buffer: Buffer) -> list[types.Diagnostic]:
    report = await pull(buffer)
    assert isinstance(report, types.RelatedFullDocumentDiagnosticReport)
    return list(report.items)


def listen(editor: FakeEditor) -> Told:
    told: Told = asyncio.Queue()
    editor.client.protocol.fm.features[types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS] = told.put_nowait
    return told


async def next_of(told: Told) -> types.PublishDiagnosticsParams:
    return await asyncio.wait_for(told.get(), DEADLINE_SECONDS)


def shown(buffer: Buffer, diagnostic: types.Diagnostic) -> str:
    """Return the text that the editor underlines, counted in its own way."""
    span = diagnostic.range
    return buffer.text[buffer.offset(span.start) : buffer.offset(span.end)]


@pytest.mark.parametrize("client", PULLED)
async def test_a_client_that_asks_is_answered_and_not_told(tmp_path: Path, client: str) -> None:
    async with session(tmp_path, client) as editor:
        told = listen(editor)
        buffer = editor.open("a.py", WEAK)
        [diagnostic] = await pulled(buffer)
        assert shown(buffer, diagnostic) == FOUND
        assert diagnostic.source == "qcn"
        assert diagnostic.code == "qcn.python.weak-hash"
        assert diagnostic.severity is types.DiagnosticSeverity.Warning
        assert "Use SHA-256" in diagnostic.message
        buffer.type("eval(x)\n")
        assert [shown(buffer, one) for one in await pulled(buffer)] == [FOUND, "eval(x)"]
        editor.close_all()
        await editor.caught_up()
        assert told.empty()


@pytest.mark.parametrize("client", PUSHED)
async def test_a_client_that_does_not_ask_is_told(tmp_path: Path, client: str) -> None:
    async with session(tmp_path, client) as editor:
        told = listen(editor)
        buffer = editor.open("a.py", WEAK)
        first = await next_of(told)
        assert first.uri == buffer.uri
        assert [shown(buffer, one) for one in first.diagnostics] == [FOUND]
        buffer.replace(0, len(buffer.text), "y = 1\n")
        assert (await next_of(told)).diagnostics == ()
        buffer.type("eval(x)\n")
        assert [shown(buffer, one) for one in (await next_of(told)).diagnostics] == ["eval(x)"]
        editor.close("a.py")
        assert (await next_of(told)).diagnostics == ()


@pytest.mark.parametrize(("client", "encoding"), ENCODINGS.items())
async def test_columns_are_the_clients(tmp_path: Path, client: str, encoding: str) -> None:
    async with session(tmp_path, client) as editor:
        assert editor.encoding == encoding
        told = listen(editor)
        buffer = editor.open("a.py", WEAK)
        asks = client in PULLED
        items = await pulled(buffer) if asks else (await next_of(told)).diagnostics
        line = WEAK.split("\n")[1]
        before = line[: line.index(FOUND)]
        units = {"utf-8": len(before.encode()), "utf-32": len(before)}
        assert items[0].range.start == types.Position(1, units.get(encoding, len(before) + 1))


async def test_versions_are_named_to_clients_that_know_them(tmp_path: Path) -> None:
    publishing = types.PublishDiagnosticsClientCapabilities(version_support=True)
    client = types.ClientCapabilities(
        text_document=types.TextDocumentClientCapabilities(publish_diagnostics=publishing)
    )
    async with session(tmp_path, client) as editor:
        told = listen(editor)
        buffer = editor.open("a.py", "x = 1\n")
        assert (await next_of(told)).version == 1
        for number in range(20):  # as fast as they come: some may be left out, never the last
            buffer.type(f"eval(x{number})\n")
        versions: list[int] = []
        while buffer.version not in versions:
            last = await next_of(told)
            assert last.version is not None
            versions.append(last.version)
        assert versions == sorted(set(versions))
        assert len(last.diagnostics) == 20


async def test_what_has_not_changed_is_not_sent_again(tmp_path: Path) -> None:
    async with session(tmp_path, "vscode") as editor:
        buffer = editor.open("a.py", WEAK)
        first = await pull(buffer)
        assert first.result_id is not None
        again = await pull(buffer, first.result_id)
        assert isinstance(again, types.RelatedUnchangedDocumentDiagnosticReport)
        assert again.result_id == first.result_id
        buffer.type("y = 1\n")
        assert isinstance(
            await pull(buffer, first.result_id), types.RelatedFullDocumentDiagnosticReport
        )


async def test_what_the_client_knows_is_sent_and_nothing_else(tmp_path: Path) -> None:
    async with session(tmp_path, "vscode") as editor:
        [diagnostic] = await pulled(editor.open("a.py", WEAK))
        assert diagnostic.code_description is not None
        assert diagnostic.code_description.href.endswith("/definitions/328.html")
        data: Any = diagnostic.data
        assert (data["rule"], data["cwe"]) == ("qcn.python.weak-hash", 328)
        moved = editor.open("b.py", "import os\n" + WEAK)
        assert (await pulled(moved))[0].data == diagnostic.data
    async with session(tmp_path, "minimal") as editor:
        told = listen(editor)
        editor.open("a.py", WEAK)
        [diagnostic] = (await next_of(told)).diagnostics
        assert diagnostic.code_description is None
        assert diagnostic.data is None


async def test_a_hint_is_no_error_however_bad_it_would_be(tmp_path: Path) -> None:
    async with session(tmp_path, "vscode") as editor:
        weak = "def f(request):\n    return open(request.GET['n'])\n"
        [diagnostic] = await pulled(editor.open("a.py", weak))
        assert diagnostic.severity is types.DiagnosticSeverity.Warning
        [diagnostic] = await pulled(editor.open("b.py", "eval(x)\n"))
        assert diagnostic.severity is types.DiagnosticSeverity.Error


@pytest.mark.parametrize(
    ("name", "language", "text", "rule"),
    [
        ("a.tsx", "typescriptreact", "const a = <b>{eval(x)}</b>;", "qcn.javascript.evaluated"),
        ("a.js", "javascript", "eval(x);", "qcn.javascript.evaluated"),
        ("a.go", "go", 'package a\nimport "crypto/md5"\nvar h = md5.New()', "qcn.go.weak-hash"),
        (
            "A.java",
            "java",
            "class A { void f(C c) { c.setSecure(false); } }",
            "qcn.java.cookie-bare",
        ),
        ("a.c", "c", "void f(char *b) { gets(b); }", "qcn.c.gets"),
        ("a.cpp", "cpp", "void f(char *b) { gets(b); }", "qcn.c.gets"),
    ],
)
async def test_every_language_that_has_rules_is_looked_at(
    tmp_path: Path, name: str, language: str, text: str, rule: str
) -> None:
    async with session(tmp_path, "vscode") as editor:
        assert [one.code for one in await pulled(editor.open(name, text, language))] == [rule]
        assert await pulled(editor.open("a.txt", text, "plaintext")) == []
        assert await pulled(Buffer(editor, "file:///not-open.py", "")) == []


async def test_the_setting_turns_it_off_and_on_again(tmp_path: Path) -> None:
    async with session(tmp_path, "emacs-eglot", findings=False) as editor:
        told = listen(editor)
        buffer = editor.open("a.py", WEAK)
        await editor.caught_up()
        assert told.empty()
        await editor.configure({"security": {"findings": True}})
        assert len((await next_of(told)).diagnostics) == 1
        await editor.configure({"security": {"findings": False}})
        assert (await next_of(told)).diagnostics == ()
        buffer.type("x")
        await editor.caught_up()
        assert told.empty()


async def test_a_client_that_asks_is_told_to_ask_again(tmp_path: Path) -> None:
    async with session(tmp_path, "vscode") as editor:
        refreshed = asyncio.Event()

        def refresh(_params: None) -> None:
            refreshed.set()

        editor.client.protocol.fm.features[types.WORKSPACE_DIAGNOSTIC_REFRESH] = refresh
        buffer = editor.open("a.py", WEAK)
        assert len(await pulled(buffer)) == 1
        await editor.configure({"security": {"findings": False}})
        await asyncio.wait_for(refreshed.wait(), DEADLINE_SECONDS)
        assert await pulled(buffer) == []


async def test_no_file_of_the_workspace_silences_or_configures(tmp_path: Path) -> None:
    (tmp_path / "ruff.toml").write_text('exclude = ["*"]\n')
    (tmp_path / "sgconfig.yml").write_text("ruleDirs: []\n")
    async with session(tmp_path, "vscode") as editor:
        text = "# ruff: noqa\nimport telnetlib\ntelnetlib.Telnet(a)  # nosec\neval(x)  # noqa\n"
        codes = [one.code for one in await pulled(editor.open("a.py", text))]
        assert codes == ["ruff.S312", "qcn.python.evaluated"]


async def test_a_change_while_a_text_is_scanned_is_answered_with_the_newer_text(
    tmp_path: Path,
) -> None:
    async with session(tmp_path, "vscode") as editor:
        buffer = editor.open("a.py", WEAK)
        asked = asyncio.ensure_future(pull(buffer))
        await asyncio.sleep(0)
        buffer.replace(0, len(buffer.text), "eval(x)\n")
        report = await asked
        assert isinstance(report, types.RelatedFullDocumentDiagnosticReport)
        codes = [one.code for one in report.items]
        # Of one text, the newer if it came before the scan ended: never a mixture.
        assert codes in (["qcn.python.evaluated"], ["qcn.python.weak-hash"])
        assert [shown(buffer, one) for one in await pulled(buffer)] == ["eval(x)"]
