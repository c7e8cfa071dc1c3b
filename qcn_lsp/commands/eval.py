"""`qcn eval [--overlay] [PATH]`: what helps a model to complete the lines of a repository?

The engine is asked over HTTP as the language server asks it, with contexts of its own; what comes
back is scored as it is, without the server's filters.
"""

import asyncio
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args
from uuid import uuid4

from qcn_indexer.layout import Count, Segment
from qcn_indexer.read import Text, read_text
from qcn_indexer.walk import Found, walk
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from qcn_lsp.commands.console import Show, make_console, progress_on
from qcn_lsp.commands.errors import CommandError
from qcn_lsp.engine.dialects import OwnEngine
from qcn_lsp.engine.local import LocalEngine
from qcn_lsp.engine.messages import (
    CompletionRequest,
    ContextLayout,
    ContextSegment,
    Dialect,
    NoChatModel,
)
from qcn_lsp.engine.process import EngineOptions, require_engine_packages
from qcn_lsp.evaluation.lines import Line, Texts, lines_with_names_of_others
from qcn_lsp.evaluation.questions import Question, Questions
from qcn_lsp.evaluation.scores import Estimate, is_exact, mean, share, similarity
from qcn_lsp.evaluation.versions import is_in_git
from qcn_lsp.features.search_replace import inserted, search_replace_chat
from qcn_lsp.settings import CompletionSettings, EngineSettings

MOST_CONTEXT = 16_384  # tokens: more would take minutes a question on a CPU
LINE_TOKENS = 48  # of an answer
PAUSE_SECONDS = 0.02  # between two looks at how far the engine has read
TITLES = {
    "repository": "Lines that use names defined in other files",
    "overlay": "The same, where the file that defines the name has changed",
    "deletion": "How often a line that was just deleted comes back",
    "format": "The same lines, by each `completion.format`",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured: a model's folder or name, lines a question, changes as well."""

    model: str
    limit: int
    overlay: bool


@dataclass(frozen=True, slots=True)
class Scores:
    """Of all lines behind one kind of context; the difference is to the first kind, line by line.

    In the experiment `format`, `context` begins with the format.
    `exact`: as the line was; where that was deleted, how often it came back.
    """

    context: str
    exact: Estimate
    similarity: Estimate
    difference: Estimate | None


@dataclass(frozen=True, slots=True)
class Experiment:
    """One question's outcome; `touched`: lines whose name the change is about."""

    name: str
    lines: int
    touched: int
    scores: tuple[Scores, ...]


def run(path: Path | None, wanted: Wanted, *, as_json: bool) -> int:
    """Evaluate a model on the repository at `path` and show the result."""
    root = (path or Path.cwd()).resolve()
    if not root.is_dir():
        raise CommandError(f"{root} is no folder")
    require_engine_packages()  # before the repository is read, which may take minutes
    with progress_on(make_console(stderr=True)) as show:
        experiments, notes, model = asyncio.run(_evaluate(root, wanted, show))
    if as_json:
        result: dict[str, Any] = {"model": model, "repository": root.name, "limit": wanted.limit}
        result |= {"experiments": [asdict(one) for one in experiments], "notes": notes}
        print(json.dumps(result, ensure_ascii=False, indent=1))
        return 0
    console = make_console()
    console.print(f"{model} on {root.name}; in brackets: 95 % intervals.", highlight=False)
    for experiment in experiments:
        _show(console, experiment)
    for note in notes:
        console.print(note, highlight=False)
    return 0


async def _evaluate(
    root: Path, wanted: Wanted, show: Show
) -> tuple[list[Experiment], list[str], str]:
    """Return the outcomes, what could not be asked and why, and the model's name."""
    show("Reading the repository", 0)
    texts = await asyncio.to_thread(_texts, root)
    lines = await asyncio.to_thread(lines_with_names_of_others, root, texts)
    if not lines:
        raise CommandError(
            f"{root} has no line to complete that uses a name defined in a file it imports"
        )
    options = EngineOptions(EngineSettings().idle_minutes)
    local = LocalEngine(wanted.model, options=options)
    engine = await local.attach(lambda status: show(status.message, None))
    try:
        asker = Asker(engine, f"{root.name} (evaluated)")  # apart from what windows have read
        count = _counter(engine, asyncio.get_running_loop())
        room = min(await engine.context_limit(), MOST_CONTEXT)
        questions = await asyncio.to_thread(Questions, root, texts, count=count, room=room)
        asked, notes = await asyncio.to_thread(_asked, questions, root, lines, wanted)
        experiments, filled = [], dict[str, list[str]]()
        for name, some in asked.items():
            if not some:
                notes.append(f"Not measured: {TITLES[name].lower()}: no line fits.")
            elif engine.infills:
                answers = await asker.filled(name, some, show)
                experiments.append(_scored(name, some, answers))
                filled = filled or answers  # of the repository's, which come first
        if not engine.infills:
            notes.append("Not measured: filling in the middle: the model is not made for that.")
        try:
            chatted, misshapen = await asker.chatted(asked["repository"], show)
            by_format = _by_format(filled, chatted)
            experiments.append(_scored("format", asked["repository"], by_format))
            notes += _about_chats(misshapen, sum(map(len, chatted.values())))
        except NoChatModel:
            notes.append("Not measured: completing by a chat: the model has no chat template.")
        await asker.forget()
    finally:
        await engine.close()
    return experiments, notes, engine.model or wanted.model


def _asked(
    questions: Questions, root: Path, lines: Sequence[Line], wanted: Wanted
) -> tuple[dict[str, list[Question]], list[str]]:
    """All questions of each experiment, and a note on one that is left out."""
    asked = {"repository": list(questions.repository(lines[: wanted.limit]))}
    if not wanted.overlay:
        return asked, []
    notes = []
    if is_in_git(root):
        asked["overlay"] = list(questions.overlay(lines, wanted.limit))
    else:
        notes.append("Not measured: changes of other files: git knows no history of this folder.")
    asked["deletion"] = list(questions.deletion(lines, wanted.limit))
    return asked, notes


def _texts(root: Path) -> Texts:
    """The files that a model may read."""
    texts: dict[PurePosixPath, str] = {}
    for found in walk(root):
        if isinstance(found, Found) and isinstance(read := read_text(root / found.path), Text):
            texts[found.path] = read.text
    return texts


def _counter(engine: OwnEngine, loop: asyncio.AbstractEventLoop) -> Count:
    """The engine's count of tokens, for worker threads."""

    @functools.cache
    def count(text: str) -> int:
        return asyncio.run_coroutine_threadsafe(engine.count_tokens(text), loop).result()

    return count


class Asker:
    """Asks one engine about one repository."""

    def __init__(self, engine: OwnEngine, repo: str) -> None:
        self._engine, self._repo = engine, repo
        self._context = f"eval-{uuid4().hex}"

    async def filled(
        self, name: str, questions: Sequence[Question], show: Show
    ) -> dict[str, list[str]]:
        """Ask every question behind each of its contexts, to fill in the middle."""
        answers: dict[str, list[str]] = {context: [] for context in questions[0].contexts}
        for done, question in enumerate(questions):
            show(TITLES[name], 100 * done // len(questions))
            for context, segments in question.contexts.items():
                answers[context].append(await self._line(question, segments))
        return answers

    async def chatted(
        self, questions: Sequence[Question], show: Show
    ) -> tuple[dict[str, list[str]], int]:
        """Ask every question by a chat; return also how many answers were no completion.

        Raises `NoChatModel` where the model has no chat template.
        """
        answers: dict[str, list[str]] = {context: [] for context in questions[0].contexts}
        misshapen = 0
        for done, question in enumerate(questions):
            show(TITLES["format"], 100 * done // len(questions))
            for context, segments in question.contexts.items():
                line = await self._line_by_chat(question, segments)
                misshapen += line is None
                answers[context].append(line or "")
        return answers, misshapen

    async def forget(self) -> None:
        """Have the engine forget what it has read for this."""
        for dialect in get_args(Dialect):
            await self._engine.delete_context(self._name(dialect), self._repo)

    def _name(self, dialect: Dialect) -> str:
        return f"{self._context}-{dialect}"

    async def _line(self, question: Question, segments: Sequence[Segment]) -> str:
        tokens = await self._read(segments, "fim") if segments else 0
        request = replace(
            self._request(question),
            context=self._name("fim") if segments else None,
            max_tokens=LINE_TOKENS,
            stop=("\n",),
        )
        result = await self._engine.complete(request)
        if result.context_tokens != tokens:
            raise CommandError("the engine has completed without the context; is it busy?")
        return result.text

    async def _line_by_chat(self, question: Question, segments: Sequence[Segment]) -> str | None:
        """The first line of a completion as long as an editor has by default; None: no such."""
        chat = search_replace_chat(self._request(question))
        if segments:
            await self._read(segments, "chat")
            chat = replace(chat, context=self._name("chat"))
        answer = await self._engine.chat(chat, None)
        text = inserted(answer.text, question.prefix, question.suffix)
        return None if text is None else text.partition("\n")[0]

    def _request(self, question: Question) -> CompletionRequest:
        return CompletionRequest(
            prefix=question.prefix,
            suffix=question.suffix,
            path=str(question.path),
            repo=self._repo,
            max_tokens=CompletionSettings().max_tokens,
        )

    async def _read(self, segments: Sequence[Segment], dialect: Dialect) -> int:
        """Have a context read; return its tokens."""
        parts = tuple(
            ContextSegment(one.hash, str(one.path), one.text, one.zone, one.hot) for one in segments
        )
        layout = ContextLayout(self._name(dialect), self._repo, parts, dialect)
        tokens = await self._engine.put_context(layout)
        while True:
            view = await self._engine.describe_context(layout.name)
            if not view["reading"]:
                return tokens
            await asyncio.sleep(PAUSE_SECONDS)


def _by_format(
    filled: Mapping[str, list[str]], chatted: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Answers of each format behind each context, the formats of one context side by side."""
    answers = {}
    for context, lines in chatted.items():
        if context in filled:
            answers[f"fim, {context}"] = filled[context]
        answers[f"chat, {context}"] = lines
    return answers


def _about_chats(misshapen: int, count: int) -> list[str]:
    """A note on chats that were no search-and-replace, if any were."""
    if not misshapen:
        return []
    return [
        f"{misshapen} of {count} chats were no search-and-replace of the cursor's place: "
        "they count as empty."
    ]


def _scored(
    name: str, questions: Sequence[Question], answers: Mapping[str, Sequence[str]]
) -> Experiment:
    """Score the answers of each kind, one a question."""
    expected = [question.expected for question in questions]
    near = {kind: list(map(similarity, given, expected)) for kind, given in answers.items()}
    first, *_ = near.values()
    scores = tuple(
        Scores(
            context=kind,
            exact=share(sum(map(is_exact, answers[kind], expected)), len(questions)),
            similarity=mean(values, 0, 1),
            difference=None if values is first else _difference(values, first),
        )
        for kind, values in near.items()
    )
    touched = sum(question.touched for question in questions)
    return Experiment(name, len(questions), touched, scores)


def _difference(values: Sequence[float], first: Sequence[float]) -> Estimate:
    return mean([mine - theirs for mine, theirs in zip(values, first, strict=True)], -1, 1)


def _show(console: Console, experiment: Experiment) -> None:
    about = f"{TITLES[experiment.name]}: n = {experiment.lines}"
    if experiment.touched:
        about += f", of which {experiment.touched} with a change about the name"
    console.print(f"\n{about}", highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("format" if experiment.name == "format" else "in front")
    table.add_column("came back" if experiment.name == "deletion" else "exact", justify="right")
    table.add_column("similarity", justify="right")
    table.add_column("difference to the first", justify="right")
    for scores in experiment.scores:
        cells = (_percent(scores.exact), _number(scores.similarity), _number(scores.difference))
        table.add_row(scores.context, *cells)
    console.print(table)


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} [{estimate.low:.0%} to {estimate.high:.0%}]"


def _number(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:.2f} [{estimate.low:.2f} to {estimate.high:.2f}]"
