"""Structured answers: exactly one fenced block, one retry, else the reason."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcn_lsp.engine.answers import FencedBlock, MalformedAnswer, ask_for_block, one_block
from qcn_lsp.engine.messages import ChatMessage, ChatRequest, ChatResult

CODE = "def f():\n    return 1\n"


@pytest.mark.parametrize(
    ("text", "block"),
    [
        (f"```python\n{CODE}```", FencedBlock(CODE, "python")),
        (f"Here it is:\n\n```\n{CODE}```\n\nIt returns `1`.\n", FencedBlock(CODE)),
        (f"~~~ py title=x\n{CODE}~~~~\n", FencedBlock(CODE, "py")),
        (f"````\n```\n{CODE}```\n````", FencedBlock(f"```\n{CODE}```\n")),
        (f"```\r\n{CODE}```".replace("\n", "\r\n"), FencedBlock(CODE)),
        ("  ```\n  a\n    b\n  ```", FencedBlock("a\n  b\n")),
        ('```\ns = """\n    ```\n"""\n```', FencedBlock('s = """\n    ```\n"""\n')),
        ("```\n~~~\n```", FencedBlock("~~~\n")),
        ("``` a `b` ```\n```\nx\n```", FencedBlock("x\n")),
        ("```\n```", FencedBlock("")),
    ],
    ids=[
        "alone",
        "explained",
        "tildes",
        "longer fence",
        "line ends",
        "indented",
        "deeper fence",
        "other fence",
        "inline code",
        "empty",
    ],
)
def test_one_block_is_taken_out_of_what_stands_around_it(text: str, block: FencedBlock) -> None:
    assert one_block(text) == block


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I cannot do that.", "no fenced code block"),
        ("", "no fenced code block"),
        (f"```\n{CODE}```\nor\n```\n{CODE}```", "2 fenced code blocks"),
        (f"```\n{CODE}", "does not close it"),
        (f'```\ns = """\n```\n"""\n```\n{CODE}', "does not close it"),
        (f"````\n{CODE}```", "does not close it"),
    ],
    ids=["prose", "nothing", "two", "open", "ambiguous", "shorter end"],
)
def test_anything_else_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(MalformedAnswer, match=reason):
        one_block(text)


@given(st.lists(st.text(st.characters(exclude_characters="\r\n")), min_size=1))
def test_any_text_comes_back_from_a_fence_longer_than_its_own(lines: list[str]) -> None:
    code = "".join(f"{line}\n" for line in lines)
    fence = "`" * (3 + max(map(len, lines)))
    assert one_block(f"Look:\n{fence}x\n{code}{fence}\n") == FencedBlock(code, "x")


class Model:
    """Answers with one text after another, and keeps what it was asked."""

    def __init__(self, *answers: ChatResult) -> None:
        self.answers = list(answers)
        self.asked: list[ChatRequest] = []

    async def chat(self, request: ChatRequest) -> ChatResult:
        self.asked.append(request)
        return self.answers.pop(0)


def said(text: str, *, cut: bool = False) -> ChatResult:
    return ChatResult(text, "length" if cut else "stop", 1, 0, 1, 1.0)


REQUEST = ChatRequest((ChatMessage("user", "Mend f."),))


@pytest.mark.parametrize("first", [said("Sure!"), said(f"```\n{CODE}```", cut=True)])
def test_a_malformed_answer_is_asked_for_once_more_with_the_reason(first: ChatResult) -> None:
    model = Model(first, said(f"```\n{CODE}```"))
    assert asyncio.run(ask_for_block(model, REQUEST)) == FencedBlock(CODE)
    asked, answered, corrected = model.asked[1].messages
    assert (asked, answered) == (REQUEST.messages[0], ChatMessage("assistant", first.text))
    assert corrected.content.startswith("The answer ")


def test_the_second_answer_is_final() -> None:
    model = Model(said("Sure!"), said("As you wish."), said(f"```\n{CODE}```"))
    with pytest.raises(MalformedAnswer, match="no fenced code block"):
        asyncio.run(ask_for_block(model, REQUEST))
    assert len(model.asked) == 2
