"""What typing costs, and what is seen of it, whatever its rhythm and the engine's speed.

Time is simulated: the event loop's clock goes straight to whatever is due next, so that the
delays, and with them each verdict, are the same on every machine. The server and its features are
real; the client and the engine are written here.
"""

import asyncio
import selectors
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lsprotocol import types
from sampling import examples

from qcn_lsp.documents import DocumentStore
from qcn_lsp.engine.link import EngineLink
from qcn_lsp.engine.messages import CompletionRequest, CompletionResult, EngineState, EngineStatus
from qcn_lsp.features.inline_completion import inline_completion
from qcn_lsp.features.suggestions import PAUSE_SECONDS, Suggestions
from qcn_lsp.server import QcnServer

URI = "untitled:a.py"
# What the user is about to type; 200 characters.
SOURCE = """\
    total = sum(item.price for item in items)
    return discounted(total, customer.rate)


def discounted(total, rate):
    lowest = min(rate, MAXIMUM)
    return total - total * lowest


def shown(total)
"""
TYPED = SOURCE[:200]


class SimulatedTime(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time but the simulated."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now


class _Selector(selectors.SelectSelector):
    def __init__(self, loop: SimulatedTime) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing is due, and somebody waits"
        ready = super().select(0)
        if not ready:
            self._loop.now += timeout
        return ready


class Engine:
    """Answers, after a while, with how the source goes on behind what is typed.

    Where the user has departed from the source it has something else to say.
    """

    status = EngineStatus(EngineState.READY)
    own_engine = None
    infills = True

    def __init__(self, latencies: Sequence[float]) -> None:
        self._latencies = latencies
        self.asked: list[tuple[float, str]] = []
        """When, and behind which text."""

    async def ensure_ready(self) -> None:
        """Be ready, as it is."""

    async def complete(self, request: CompletionRequest) -> CompletionResult:
        loop = asyncio.get_running_loop()
        self.asked.append((loop.time(), request.prefix))
        await asyncio.sleep(self._latencies[len(self.asked) % len(self._latencies)])
        return CompletionResult(answer_behind(request.prefix), "stop", 1, 0, 1, 1.0)


def answer_behind(prefix: str) -> str:
    if TYPED.startswith(prefix):
        return SOURCE[len(prefix) : len(prefix) + 40]
    return f"other_{len(prefix)}"


class Server(QcnServer):
    """The real server with this engine; what it would send to the client is kept."""

    def __init__(self, loop: SimulatedTime, engine: Engine) -> None:
        super().__init__()
        self.documents = DocumentStore(clock=loop.time)
        self._scripted = engine
        self.protocol.notify = lambda *_: None  # type: ignore[method-assign]  # no client listens

    @property
    def engine(self) -> EngineLink:
        return cast(EngineLink, self._scripted)


@dataclass
class Shown:
    """What an editor has on its screen: the rest of a suggestion, made for a text."""

    text: str
    rest: str


class Typist:
    """A client as VS Code is: it asks after each key, and keeps showing what still fits."""

    def __init__(self, server: Server, engine: Engine) -> None:
        self._server = server
        self._engine = engine
        self._suggestions = Suggestions(server)
        self._requests: set[asyncio.Task[None]] = set()
        self._version = 1
        self.text = ""
        self.shown: Shown | None = None
        self.changed_at: list[float] = []
        item = types.TextDocumentItem(URI, "python", 1, "")
        server.documents.open(item)

    async def press(self, key: str) -> None:
        """Type a text, and see what is shown right after it."""
        kept = self.shown is not None and self.shown.rest.startswith(key)
        left = self.shown.rest[len(key) :] if kept and self.shown else ""
        asked = len(self._engine.asked)
        self._insert(key)
        if left.strip():
            # No flicker: the answer for the new place is there within the same instant.
            before = asyncio.get_running_loop().time()
            await self.ask()
            assert asyncio.get_running_loop().time() == before
            assert self.shown == Shown(self.text, left)
            assert len(self._engine.asked) == asked
        else:
            self.shown = None
            request = asyncio.create_task(self.ask())
            self._requests.add(request)
            request.add_done_callback(self._requests.discard)

    def press_silently(self, key: str) -> None:
        """Type a text and do not ask yet, as Neovim does; what was asked before is under way."""
        self._insert(key)
        self.shown = None

    def accept(self) -> bool:
        """Accept what is shown, if there is anything."""
        if self.shown is None:
            return False
        assert self.shown.text == self.text, "made for another text"
        self._insert(self.shown.rest)
        self.shown = None
        return True

    async def rest(self) -> None:
        """Wait until every request is answered."""
        await asyncio.gather(*self._requests)

    def _insert(self, text: str) -> None:
        self._version += 1
        self.text += text
        self.changed_at.append(asyncio.get_running_loop().time())
        identifier = types.VersionedTextDocumentIdentifier(self._version, URI)
        whole = types.TextDocumentContentChangeWholeDocument(self.text)
        self._server.documents.change(identifier, [whole])

    async def ask(self) -> None:
        """Ask at the end of the text; show what the answer holds."""
        asked_for = self.text
        lines = asked_for.split("\n")
        answer = await inline_completion(
            self._server,
            self._suggestions,
            types.InlineCompletionParams(
                types.InlineCompletionContext(types.InlineCompletionTriggerKind.Automatic),
                types.TextDocumentIdentifier(URI),
                types.Position(len(lines) - 1, len(lines[-1])),
            ),
        )
        if not answer.items:
            return
        assert asked_for == self.text, "an answer to a text that has changed since"
        (item,) = answer.items
        assert isinstance(item.insert_text, str)
        assert item.insert_text.startswith(lines[-1])
        rest = item.insert_text[len(lines[-1]) :]
        assert self._is_the_models(rest), "nobody said this about this text"
        self.shown = Shown(asked_for, rest)

    def _is_the_models(self, rest: str) -> bool:
        """Whether the model, asked behind some of the text, has said the rest of it and this."""
        return any(
            self.text.startswith(prefix)
            and answer_behind(prefix).startswith(self.text[len(prefix) :] + rest)
            for _, prefix in self._engine.asked
        )


def simulate(work: Any, latencies: Sequence[float]) -> tuple[Typist, Engine]:
    """Run `work(typist)` in simulated time; return what it used."""
    with asyncio.Runner(loop_factory=SimulatedTime) as runner:
        loop = cast(SimulatedTime, runner.get_loop())
        engine = Engine(latencies)

        async def session() -> Typist:
            typist = Typist(Server(loop, engine), engine)
            await cast(Coroutine[Any, Any, None], work(typist))
            await typist.rest()
            return typist

        return runner.run(session()), engine


def assert_one_request_for_each_pause(typist: Typist, engine: Engine) -> None:
    """Each request comes in a gap as long as a pause, and no gap has two."""
    changes = [*typist.changed_at, float("inf")]
    gaps = []
    for at, _ in engine.asked:
        gap = sum(changed <= at for changed in changes)
        assert at - changes[gap - 1] >= PAUSE_SECONDS - 1e-9, "asked while typing"
        gaps.append(gap)
    assert len(set(gaps)) == len(gaps), "asked twice in one pause"


@pytest.mark.long
@examples(sample=60, full=600)
@given(
    delays=st.lists(st.floats(0.02, 0.6), min_size=5, max_size=30),
    latencies=st.lists(st.floats(0.0, 0.8), min_size=1, max_size=5),
    turns=st.lists(
        st.sampled_from(["go on", "go on", "go on", "depart", "accept", "silently"]), min_size=1
    ),
)
def test_whatever_the_rhythm_and_the_engines_speed(
    delays: list[float], latencies: list[float], turns: list[str]
) -> None:
    async def work(typist: Typist) -> None:
        for number in range(200):
            turn = turns[number % len(turns)]
            if turn == "accept" and typist.accept():
                continue
            on_course = TYPED.startswith(typist.text) and len(typist.text) < len(TYPED)
            next_key = TYPED[len(typist.text)] if on_course else "y"
            if turn == "silently":
                typist.press_silently(next_key)
            else:
                await typist.press("x" if turn == "depart" and number % 7 == 0 else next_key)
            await asyncio.sleep(delays[number % len(delays)])

    assert_one_request_for_each_pause(*simulate(work, latencies))


def test_200_characters_at_ten_a_second_cost_one_request_at_their_end() -> None:
    async def work(typist: Typist) -> None:
        for key in TYPED:
            await typist.press(key)
            await asyncio.sleep(0.1)

    typist, engine = simulate(work, [0.2])
    assert [prefix for _, prefix in engine.asked] == [TYPED]
    assert typist.shown == Shown(TYPED, SOURCE[200:].rstrip())


def test_a_pause_after_each_line_costs_one_request_each() -> None:
    async def work(typist: Typist) -> None:
        for key in TYPED:
            await typist.press("z" if key == "e" else key)  # never as suggested
            await asyncio.sleep(0.9 if key == "\n" else 0.1)

    _, engine = simulate(work, [0.2])
    assert len(engine.asked) == TYPED.count("\n") + 1


def test_typing_what_is_suggested_costs_nothing_more() -> None:
    async def work(typist: Typist) -> None:
        await typist.press("    total")
        await typist.rest()
        for key in " = sum(item.price":
            await typist.press(key)
            await asyncio.sleep(0.4)

    _, engine = simulate(work, [0.2])
    assert len(engine.asked) == 1


def test_where_nothing_was_typed_only_a_burst_is_waited_for() -> None:
    async def work(typist: Typist) -> None:
        await typist.ask()

    _, engine = simulate(work, [0.0])
    assert [at for at, _ in engine.asked] == [pytest.approx(0.05)]
