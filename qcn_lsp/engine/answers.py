"""Structured answers: one fenced code block, or a reason why there is none.

What a model writes for an edit must be unmistakable: exactly one block, closed, not cut short. Text
around it is passed over, for most models explain themselves. An answer that is anything else is
told what is wrong with it and asked for once more; the second is final.

Fences are read as CommonMark has them: three or more backticks or tildes, indented by three spaces
at most, closed by at least as many of the same on a line of their own.
"""

import re
from dataclasses import dataclass, replace
from typing import Protocol

from qcn_lsp.engine.messages import ChatMessage, ChatRequest, ChatResult

_FENCE = re.compile(r"(?P<indent> {0,3})(?P<fence>`{3,}|~{3,})(?P<info>.*)")


class MalformedAnswer(Exception):  # noqa: N818 - an outcome of asking, as EngineUnavailable is
    """The model did not answer in the form that it was asked for; str() says what was wrong."""


@dataclass(frozen=True)
class FencedBlock:
    """A fenced code block: its lines, each with its line feed, and the word behind the fence."""

    text: str
    language: str = ""


class Chats(Protocol):
    """Something that answers chats, as `EngineLink` does."""

    async def chat(self, request: ChatRequest) -> ChatResult:
        """Answer the turns of `request`."""
        ...


async def ask_for_block(link: Chats, request: ChatRequest) -> FencedBlock:
    """Return the one fenced block of the answer; one that is malformed is asked for once more.

    Raises `MalformedAnswer` when the second is no better, and what `chat` raises.
    """
    answer = await link.chat(request)
    try:
        return block_of(answer)
    except MalformedAnswer as problem:
        again = f"{problem} Answer again, with exactly one fenced code block and nothing else."
        turns = (ChatMessage("assistant", answer.text), ChatMessage("user", again))
        retry = replace(request, messages=(*request.messages, *turns))
    return block_of(await link.chat(retry))


def fence_for(text: str) -> str:
    """Return a fence of backticks that nothing in `text` closes."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def fenced(text: str, language: str = "") -> str:
    """Return `text` as a fenced block."""
    fence = fence_for(text)
    return f"{fence}{language}\n{text}\n{fence}"


def block_of(answer: ChatResult) -> FencedBlock:
    """Return the one fenced block of a whole answer; raises `MalformedAnswer`."""
    if answer.finish_reason == "length":
        raise MalformedAnswer("The answer was cut short: it was longer than was allowed.")
    return one_block(answer.text)


def one_block(text: str) -> FencedBlock:
    """Return the one fenced block in `text`; raises `MalformedAnswer`."""
    blocks: list[FencedBlock] = []
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        fence = _FENCE.fullmatch(line)
        if opened is None:
            if fence and not ("`" in fence["fence"] and "`" in fence["info"]):
                opened, lines = fence, []
        elif fence and _closes(fence, opened):
            blocks.append(FencedBlock("".join(lines), opened["info"].strip().split(" ")[0]))
            opened = None
        else:
            indent = len(opened["indent"])
            lines.append((line[indent:] if line[:indent].isspace() else line) + "\n")
    if opened is not None:
        raise MalformedAnswer("The answer opens a fenced code block and does not close it.")
    if len(blocks) != 1:
        found = f"{len(blocks)} fenced code blocks" if blocks else "no fenced code block"
        raise MalformedAnswer(f"The answer holds {found}, not one.")
    return blocks[0]


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    return fence["fence"].startswith(opened["fence"]) and not fence["info"].strip()
