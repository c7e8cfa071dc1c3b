"""`qcn demo`: the main job on a real repository, shown step by step.

Starts the language server as an editor does, which starts the engine; opens files of the
repository; deletes the rest of a line at several places, asks for an inline completion there, and
puts the line back. Nothing is written to disk. An engine that was not running before is ended
afterwards.
"""

import asyncio
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

import qcn_lsp
from qcn_lsp.commands.console import Show, make_console, progress_on
from qcn_lsp.commands.engine import running_engines
from qcn_lsp.commands.errors import CommandError
from qcn_lsp.commands.places import MIN_LINES, Place, choose_places, source_files
from qcn_lsp.commands.session import (
    EditorSession,
    ServerStatus,
    Suggestion,
    editor_session,
    language_of,
)
from qcn_lsp.engine.local import dismiss
from qcn_lsp.engine.runtime import (
    EMBEDDED_MODEL,
    Address,
    address_at,
    engine_key,
    runtime_directory,
)
from qcn_lsp.positions import plain_lines

PLACES, PLACES_PER_FILE = 10, 2
_ABOUT_EMBEDDED_MODEL = (
    "qcn-nano is a small model of the real architecture: it shows that all works, not how well.\n"
    "A model that helps, a Qwen3-Coder-Next checkpoint: qcn demo --model FOLDER shows it here, the "
    "setting\nqcn.models.completion has editors use it. qcn doctor tells which would run here."
)
_REPOSITORY_MARKS = (".git", "pyproject.toml", "package.json", "Cargo.toml", "go.mod", "setup.py")


@dataclass(frozen=True)
class Outcome:
    """One place and what was suggested there."""

    place: Place
    suggestion: Suggestion

    @property
    def exact(self) -> bool:
        """Whether the line came out as it was."""
        return plain_lines(self.suggestion.text or "")[0].rstrip() == self.place.rest


def run(path: Path | None, options: Mapping[str, Any]) -> int:
    """Show completions in the repository at `path`; `options` are settings for the server."""
    console = make_console()
    root = _root(path)
    places = choose_places(root, count=PLACES, per_file=PLACES_PER_FILE)
    if not places:
        raise CommandError(_why_no_places(root))
    folder = root if root.is_dir() else root.parent
    console.print(
        f"Completing {len(places)} places of {folder} through the language server, with "
        f"{_model(options)}.",
        highlight=False,
    )
    outcomes = asyncio.run(_complete_all(folder, places, options, console))
    console.print(table_of(outcomes, folder))
    console.print(_summary(outcomes), highlight=False)
    if not options:  # the embedded model
        console.print(_ABOUT_EMBEDDED_MODEL, highlight=False)
    return 0


def _model(options: Mapping[str, Any]) -> str:
    if "engine" in options:
        return f"the model at {options['engine']['url']}"
    if "models" in options:
        return f"{_path(options)}, on this machine alone"
    return f"{EMBEDDED_MODEL}, the small embedded model, on this machine alone"


def _path(options: Mapping[str, Any]) -> str:
    """Return the folder of the local model, or the embedded model's name."""
    return str(options.get("models", {}).get("completion", EMBEDDED_MODEL))


def _why_no_places(root: Path) -> str:
    if not source_files(root):
        return f"{root} holds no source code to complete"
    return (
        f"{root} holds source code, but no file long enough to complete: one of {MIN_LINES} lines "
        "or more, with something in them to guess"
    )


def _root(path: Path | None) -> Path:
    """Return the repository to show: the one asked for, this one, or our own source."""
    if path is not None:
        if not path.exists():
            raise CommandError(f"{path} does not exist")
        return path.resolve()
    here = Path.cwd()
    if any((here / mark).exists() for mark in _REPOSITORY_MARKS):
        return here
    return Path(qcn_lsp.__file__).parent


async def _complete_all(
    folder: Path, places: list[Place], options: Mapping[str, Any], console: Console
) -> list[Outcome]:
    leave_alone = "engine" in options or await _engine_runs(_path(options))
    try:
        with progress_on(console) as show:
            show("Starting the language server", 0)

            def loading(status: ServerStatus) -> None:
                if status.busy and status.message:
                    show(status.message, status.percentage)

            async with editor_session(folder, loading, options=options) as session:
                await _warm_up(session, folder)
                return await _complete_each(session, places, show)
    finally:
        if not leave_alone:
            await _end_engine(_path(options))


async def _warm_up(session: EditorSession, folder: Path) -> None:
    """Have the engine started and its model read, so that no place waits for that."""
    uri = (folder / "qcn-demo-warm-up.py").as_uri()  # exists in the session alone
    session.open(uri, "python", "import os\n\n\ndef ")
    await session.suggest(uri, 3, 4)
    session.close(uri)


async def _complete_each(session: EditorSession, places: list[Place], show: Show) -> list[Outcome]:
    texts = {place.path: place.path.read_bytes().decode("utf-8") for place in places}
    opened: set[Path] = set()
    outcomes = []
    for done, place in enumerate(places):
        show(f"Completing {place.path.name}:{place.line + 1}", 100 * done // len(places))
        uri, lines = place.path.as_uri(), plain_lines(texts[place.path])
        if place.path not in opened:  # files are opened one after another, and stay open
            opened.add(place.path)
            session.open(uri, language_of(place.path), texts[place.path])
        lines[place.line] = place.before
        session.change(uri, "\n".join(lines))
        outcomes.append(Outcome(place, await session.suggest(uri, place.line, place.column)))
        session.change(uri, texts[place.path])
    return outcomes


def table_of(outcomes: list[Outcome], folder: Path) -> Table:
    """Return a row for each outcome; in a narrow terminal the texts share what room there is."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("file:line", no_wrap=True, overflow="ellipsis")
    table.add_column("before the cursor", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("suggestion", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("original", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("ms", justify="right", no_wrap=True)
    for outcome in outcomes:
        place = outcome.place
        table.add_row(
            Text(f"{_end_of(str(place.path.relative_to(folder)))}:{place.line + 1}"),
            Text(_end_of(place.before.lstrip()) or "(start of the line)", style="dim"),
            _shown(outcome),
            Text(place.rest),
            f"{outcome.suggestion.milliseconds:.0f}",
        )
    return table


def _shown(outcome: Outcome) -> Text:
    if outcome.suggestion.text is None:
        return Text("(none)", style="italic")
    lines = [line.strip() for line in plain_lines(outcome.suggestion.text.rstrip())]
    shown = Text(" ⏎ ".join(lines[:2]), style="bold green" if outcome.exact else "cyan")
    if len(lines) > 2:
        shown.append(f" ⏎ … {len(lines)} lines", style="dim")
    return shown


def _end_of(text: str, width: int = 24) -> str:
    """Return the end of `text`, of at most `width` characters."""
    return text if len(text) <= width else "…" + text[1 - width :]


def _summary(outcomes: list[Outcome]) -> str:
    times = [outcome.suggestion.milliseconds for outcome in outcomes]
    exact = sum(outcome.exact for outcome in outcomes)
    return (
        f"{exact} of {len(outcomes)} lines exactly as they were; median "
        f"{statistics.median(times):.0f} ms from request to answer."
    )


def _address(model: str) -> Address | None:
    tcp = sys.platform == "win32"
    return address_at(runtime_directory(), engine_key(model), tcp=tcp)


async def _engine_runs(model: str) -> bool:
    address = _address(model)
    return bool(address and await running_engines([address]))


async def _end_engine(model: str) -> None:
    """Ask the engine that this demonstration started to leave when nobody uses it."""
    address = _address(model)
    if address and await running_engines([address]):
        client = address.client()
        try:
            await dismiss(client, when="idle")
        finally:
            await client.close()
