"""Inline completion through the real language server and engine, from request to answer, warm.

Positions: the rest of a line is deleted at places of this repository, as `qcn demo` chooses them,
and a suggestion asked for; up to `OPEN_FILES` files are open, the oldest closed when another is
opened, so that some requests find a new context and most a known one. Typing: the deleted text is
typed again character by character, with a request after each. Keystrokes: `keystrokes.py`.
"""

import asyncio
import time
from typing import Any

from benchmarks import keystrokes, machine
from benchmarks.editor import REPOSITORY, engine_totals, open_file, own_engine
from benchmarks.results import percentiles
from qcn_lsp.commands.places import Place, choose_places
from qcn_lsp.commands.session import EditorSession, editor_session
from qcn_lsp.positions import plain_lines

OPEN_FILES = 8
PLACES, PLACES_PER_FILE, TYPED_PLACES = 120, 4, 4
QUICK_PLACES, QUICK_TYPED_PLACES = 8, 1


def run(threads: int, *, quick: bool) -> dict[str, Any]:
    """Measure with the embedded model; the engine chooses its threads itself."""
    about = machine.describe(threads)
    count = QUICK_PLACES if quick else PLACES
    places = choose_places(REPOSITORY, count=count, per_file=PLACES_PER_FILE)
    with own_engine():
        measured = asyncio.run(_measure(places, quick=quick))
    return {"benchmark": "completion"} | about | {"model": "qcn-nano"} | measured


async def _measure(places: list[Place], *, quick: bool) -> dict[str, Any]:
    typed_places = QUICK_TYPED_PLACES if quick else TYPED_PLACES
    async with editor_session(REPOSITORY) as session:
        documents = _Documents(session)
        first = await documents.complete(places[0])  # starts the engine and loads the model
        before = await engine_totals()
        at_places = [await documents.complete(place) for place in places]
        between = await engine_totals()
        longest = sorted(places, key=lambda place: -len(place.rest))[:typed_places]
        typed = [answer for place in longest for answer in await documents.type(place)]
        after = await engine_totals()
        at_speed = await keystrokes.measure(session, quick=quick)
    return {
        "first_request_with_engine_start": _value(first[0], "ms"),
        "positions": _figures(at_places, before, between),
        "typing": _figures(typed, between, after),
        "keystrokes": at_speed,
    }


class _Documents:
    """The files that are open."""

    def __init__(self, session: EditorSession) -> None:
        self._session = session
        self._texts: dict[str, str] = {}

    async def complete(self, place: Place) -> tuple[float, bool]:
        """Ask at a place; return milliseconds and whether anything was suggested."""
        uri = self._shown(place)
        answer = await self._ask(uri, place, place.before)
        self._session.change(uri, self._texts[uri])
        return answer

    async def type(self, place: Place) -> list[tuple[float, bool]]:
        """Type the rest of the line, asking after each character."""
        uri = self._shown(place)
        typed = [place.rest[: end + 1] for end in range(len(place.rest) - 1)]
        answers = [await self._ask(uri, place, place.before + text) for text in typed]
        self._session.change(uri, self._texts[uri])
        return answers

    async def _ask(self, uri: str, place: Place, line: str) -> tuple[float, bool]:
        lines = plain_lines(self._texts[uri])
        lines[place.line] = line
        text = "\n".join(lines)
        began = time.perf_counter()
        self._session.change(uri, text)
        suggestion = await self._session.suggest(uri, place.line, len(line))
        return (time.perf_counter() - began) * 1000, bool(suggestion.text)

    def _shown(self, place: Place) -> str:
        uri = place.path.as_uri()
        if uri not in self._texts:
            if len(self._texts) == OPEN_FILES:
                oldest = next(iter(self._texts))
                self._session.close(oldest)
                del self._texts[oldest]
            self._texts[uri] = open_file(self._session, place.path)
        return uri


def _figures(
    answers: list[tuple[float, bool]], before: dict[str, float], after: dict[str, float]
) -> dict[str, Any]:
    """Latency, how often something was suggested, and what that cost the engine on average."""
    suggested = sum(found for _, found in answers)
    spent = {name: after[name] - before.get(name, 0.0) for name in after}
    asked = max(1.0, spent["qcn_requests_total"])
    read = spent["qcn_prompt_tokens_total"] - spent["qcn_cached_tokens_total"]
    return {
        "latency": percentiles([milliseconds for milliseconds, _ in answers], "ms"),
        "suggestions": _value(suggested / len(answers), "of 1"),
        "requests_that_reached_the_engine": _value(spent["qcn_requests_total"], "requests"),
        "mean_of_those": {
            "prompt_tokens_read": _value(read / asked, "tokens"),
            "prompt_tokens_known": _value(spent["qcn_cached_tokens_total"] / asked, "tokens"),
            "generated_tokens": _value(spent["qcn_generated_tokens_total"] / asked, "tokens"),
            "prefill": _value(1000 * spent["qcn_prefill_seconds_total"] / asked, "ms"),
            "decode": _value(1000 * spent["qcn_decode_seconds_total"] / asked, "ms"),
        },
    }


def _value(value: float, unit: str) -> dict[str, Any]:
    return {"unit": unit, "value": round(value, 2)}
