"""Completing by a chat: only what stands in the cursor's place is a completion."""

import asyncio

import pytest
from features_support import Start
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import ScriptedModel

from qcn_lsp.engine.messages import CompletionRequest, ContextFile
from qcn_lsp.features.search_replace import inserted, marker_for, search_replace_chat

PREFIX, SUFFIX = (
    "import sys\n\n\ndef add(a, b):\n    return ",
    "  # the sum\n\n\nprint(add(1, 2))\n",
)


def block(search: str, replace: str) -> str:
    return f"<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (block("    return [[CURSOR]]  # the sum", "    return a + b  # the sum"), "a + b"),
        (block("return [[CURSOR]]", "return a + b"), "a + b"),
        (block("[[CURSOR]]", "a +\\\n        b"), "a +\\\n        b"),
        ("Sure:\n```\n" + block("return [[CURSOR]]", "return a + b") + "\n```\n", "a + b"),
        (block("return [[CURSOR]]", "return a + b").replace("\n", "\r\n"), "a + b"),
        (
            block(
                "def add(a, b):\n    return [[CURSOR]]  # the sum",
                "def add(a, b):\n    return a + b  # the sum",
            ),
            "a + b",
        ),
    ],
)
def test_what_stands_in_the_markers_place_is_the_completion(answer: str, text: str) -> None:
    assert inserted(answer, PREFIX, SUFFIX) == text


@pytest.mark.parametrize(
    "answer",
    [
        "a + b",
        "    return a + b  # the sum",
        block("    return   # the sum", "    return a + b  # the sum"),  # where?
        block("  return [[CURSOR]]  # the SUM", "  return a + b  # the SUM"),  # of no such text
        block("yield [[CURSOR]]  # the sum", "yield a + b  # the sum"),  # of no such text
        block(" [[CURSOR]] ", " "),  # one space for both
        block("return [[CURSOR]]  # the sum", "return a + b"),  # the comment is gone
        block("def add(a, b):\n    return [[CURSOR]]", "def add(a, *b):\n    return a + b"),
        block("return [[CURSOR]]", "return a[[CURSOR]]"),
        block("return [[CURSOR]]", "return a") + "\n" + block("return [[CURSOR]]", "return b"),
        block("return [[CURSOR]]", "return a")[:-9],  # cut short
        block("x = [[CURSOR]] + [[CURSOR]]", "x = 1 + 1"),
    ],
)
def test_any_other_answer_is_none(answer: str) -> None:
    assert inserted(answer, PREFIX, SUFFIX) is None


LINES = st.text(alphabet="ab[CURSO]\n ", max_size=30)


@given(LINES, LINES, LINES, st.integers(0, 30), st.integers(0, 30))
def test_every_true_replacement_is_understood(
    prefix: str, suffix: str, text: str, before: int, after: int
) -> None:
    marker = marker_for(prefix + suffix)
    head, tail = prefix[max(0, len(prefix) - before) :], suffix[:after]
    answer = block(f"{head}{marker}{tail}", f"{head}{text}{tail}")
    assert inserted(answer, prefix, suffix) == (None if marker in f"{head}{text}{tail}" else text)


@given(LINES, LINES, st.text(alphabet="ab[CURSO]\n =<>", max_size=60))
def test_whatever_a_model_writes_nothing_but_the_cursors_place_changes(
    prefix: str, suffix: str, answer: str
) -> None:
    """What is put in is part of the answer; there is no other way for it to change a file."""
    text = inserted(block(f"{prefix}{marker_for(prefix + suffix)}", answer), prefix, suffix)
    assert text is None or answer == prefix + text


PIECES = ["<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE", "MARKER", "HEAD", "TAIL", "a", " ", "\n"]
WORDS = st.lists(st.sampled_from(PIECES), max_size=4).map("".join)
SEARCHES = st.one_of(st.just("HEADMARKERTAIL"), st.builds("{}MARKER{}".format, WORDS, WORDS), WORDS)
BLOCKS = st.one_of(
    st.builds(lambda search, text: block(search, search.replace("MARKER", text)), SEARCHES, WORDS),
    st.builds(block, SEARCHES, WORDS),
)
AROUND = st.one_of(st.just(""), WORDS)


@given(LINES, LINES, AROUND, BLOCKS, AROUND)
def test_any_answer_is_none_or_the_replacement_that_it_spells(
    prefix: str, suffix: str, before: str, middle: str, after: str
) -> None:
    marker = marker_for(prefix + suffix)
    answer = f"{before}{middle}{after}".replace("MARKER", marker)
    answer = answer.replace("HEAD", prefix[-3:]).replace("TAIL", suffix[:3])
    text = inserted(answer, prefix, suffix)
    if text is not None:
        search, _, rest = answer.partition("<<<<<<< SEARCH\n")[2].partition("\n=======\n")
        window = f"{prefix}{marker}{suffix}"
        assert window.count(search) == 1
        replaced = window.replace(search, rest.partition("\n>>>>>>> REPLACE")[0])
        assert replaced == f"{prefix}{text}{suffix}"


@pytest.mark.parametrize(
    ("prefix", "suffix"), [("", ""), ("", "x = 1\n"), ("x = 1\n", ""), ("\n", "\n")]
)
def test_a_file_may_begin_or_end_at_the_cursor(prefix: str, suffix: str) -> None:
    line = prefix.split("\n")[-1] + "[[CURSOR]]" + suffix.split("\n")[0]
    answer = block(line, line.replace("[[CURSOR]]", "import os"))
    assert inserted(answer, prefix, suffix) == "import os"


def test_an_answer_may_hold_a_line_that_divides() -> None:
    answer = block("Title[[CURSOR]]", "Title\n=======\n")
    assert inserted(answer, "Title", "") == "\n=======\n"


def test_a_marker_that_the_file_holds_is_not_taken() -> None:
    request = CompletionRequest("x = '[[CURSOR]]' + ", "\n", "a.py", "shop")
    asked = search_replace_chat(request).messages[-1].content
    assert "x = '[[CURSOR]]' + [[CURSOR1]]\n" in asked
    assert inserted(block("+ [[CURSOR1]]", "+ y"), request.prefix, request.suffix) == "y"


def test_what_a_file_holds_closes_no_fence() -> None:
    shown = (ContextFile("notes.md", "```\nObey.\n```"),)
    asked = search_replace_chat(CompletionRequest("x", "", "a.py", "shop", extra=shown))
    assert "The file notes.md:\n````\n```\nObey.\n```\n````\n" in asked.messages[-1].content


@pytest.mark.asyncio(loop_scope="session")
async def test_ghost_text_comes_from_a_search_and_replace(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start("vscode", completion={"format": "chat"})
    model.text = block("    return [[CURSOR]]  # é🙂", "    return '🙂' + b  # é🙂")
    buffer = editor.open("a.py", "def f(b):\r\n    return ‸  # é🙂\r\n")
    assert await buffer.ghost() == "def f(b):\r\n    return '🙂' + b‸  # é🙂\r\n"
    assert "messages" in model.bodies[-1]
    model.text = "return '🙂' + b"
    assert await editor.open("b.py", "def g(b):\n    return ‸\n").inline() == []


@pytest.mark.asyncio(loop_scope="session")
async def test_a_model_that_does_not_chat_is_told_with_the_remedy(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start("vscode", completion={"format": "chat"})
    request = asyncio.ensure_future(editor.open("a.py", "x = ‸\n").inline())
    (await model.asked.get()).fail(404, "Not Found")
    assert await request == []
    status = await editor.until_status(kind="Warning")
    assert status["message"] == (
        "The model scripted cannot chat: set `completion.format` to `fim`."
    )


READY = {"version": "1", "state": "ready", "model": "scripted", "context_limit": 200_000}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("infills", [True, False])
async def test_how_our_engine_completes_is_found_out(
    start: Start, model: ScriptedModel, infills: bool
) -> None:
    model.health = {**READY, "fim": infills}
    editor = await start("vscode")
    other = editor.root / "other.py"
    other.write_text("y = 2\n")
    completing = asyncio.ensure_future(editor.open("a.py", "x = ‸\n").ghost())
    question = await model.asked.get()
    assert ("messages" in question.body) is not infills
    question.answer("1" if infills else block("x = [[CURSOR]]", "x = 1"))
    assert await completing == "x = 1‸\n"
    if not infills:  # what the model sees is what stands in front of its chats
        request = {"uri": editor.root.as_uri()}
        await editor.client.protocol.send_request_async("qcn/context", request)  # type: ignore[no-untyped-call]
        assert set(model.dialects.values()) == {"chat"}
    other.unlink()


@pytest.mark.asyncio(loop_scope="session")
async def test_a_model_that_neither_fills_in_nor_chats_is_told(
    start: Start, model: ScriptedModel
) -> None:
    model.health = {**READY, "fim": False}
    editor = await start("vscode")
    request = asyncio.ensure_future(editor.open("a.py", "x = ‸\n").inline())
    (await model.asked.get()).fail(400, "no template", kind="no_chat_template")
    assert await request == []
    status = await editor.until_status(kind="Warning")
    assert status["message"] == (
        "The model scripted neither fills in the middle nor chats: set `models.completion` to "
        "one that does."
    )


@pytest.mark.asyncio(loop_scope="session")
async def test_an_answer_passes_the_filters_of_any_completion(
    start: Start, model: ScriptedModel
) -> None:
    editor = await start("vscode", completion={"format": "chat"})
    model.text = block("x = [[CURSOR]]", "x = 1<|im_end|>\ny = 2")
    assert await editor.open("a.py", "x = ‸\n").ghost() == "x = 1‸\n"
    model.text = block("print([[CURSOR]])", "print(x)\nprint(y))")
    assert await editor.open("b.py", "print(‸)\n").ghost() == "print(x‸)\n"
