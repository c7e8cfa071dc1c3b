"""`qcn complete FILE:LINE:COL`: what the language server suggests at one place."""

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcn_indexer.files import TooLongError, read_file

from qcn_lsp.commands.errors import CommandError
from qcn_lsp.commands.session import Suggestion, editor_session, language_of
from qcn_lsp.commands.workspace import workspace_of
from qcn_lsp.positions import plain_lines

MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Spot:
    """A place in a file; `line` and `column` count from 1, `column` in characters."""

    path: Path
    line: int
    column: int


def run(place: str, options: Mapping[str, Any], *, as_json: bool) -> int:
    """Print the suggestion at `place`; where there is none, say so and why on stderr.

    `options` are settings for the language server.
    """
    spot = parse_spot(place)
    text = read_source(spot.path)
    check_inside(spot, text)
    suggestion = asyncio.run(_complete(spot, text, options))
    if as_json:
        answer = {
            "file": str(spot.path),
            "line": spot.line,
            "column": spot.column,
            "suggestion": suggestion.text,
            "reason": suggestion.reason,
            "milliseconds": round(suggestion.milliseconds, 1),
        }
        print(json.dumps(answer, ensure_ascii=False))
    elif suggestion.text is not None:
        print(suggestion.text)
    else:
        print(f"no suggestion: {suggestion.reason}", file=sys.stderr)
    return 0


def parse_spot(place: str) -> Spot:
    """Return the place that FILE:LINE:COL names; the file's name may hold colons."""
    parts = place.rsplit(":", 2)
    if len(parts) != 3 or not parts[0]:
        raise CommandError(f"expected FILE:LINE:COL, got {place}")
    try:
        line, column = int(parts[1]), int(parts[2])
    except ValueError:
        raise CommandError(f"expected FILE:LINE:COL with two numbers, got {place}") from None
    if line < 1 or column < 1:
        raise CommandError(f"lines and columns count from 1, got {place}")
    return Spot(Path(parts[0]), line, column)


def read_source(path: Path) -> str:
    """Return a source file's text; raises `CommandError` for what is none."""
    try:
        text = read_file(path, limit=MAX_BYTES, follow=True).decode("utf-8")
    except TooLongError as error:
        raise CommandError(f"{path} is larger than {MAX_BYTES >> 20} MiB") from error
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not UTF-8 text ({error.reason})") from error
    if "\0" in text:
        raise CommandError(f"{path} is a binary file")
    return text


def check_inside(spot: Spot, text: str) -> None:
    """Raise `CommandError` when the place is not in the text."""
    lines = plain_lines(text)
    if spot.line > len(lines):
        raise CommandError(f"{spot.path} has {len(lines)} lines; there is no line {spot.line}")
    length = len(lines[spot.line - 1])
    if spot.column > length + 1:
        raise CommandError(
            f"line {spot.line} of {spot.path} has columns 1 to {length + 1}, not {spot.column}"
        )


async def _complete(spot: Spot, text: str, options: Mapping[str, Any]) -> Suggestion:
    path = spot.path.resolve()
    async with editor_session(workspace_of(path), options=options) as session:
        session.open(path.as_uri(), language_of(path), text)
        return await session.suggest(path.as_uri(), spot.line - 1, spot.column - 1)
