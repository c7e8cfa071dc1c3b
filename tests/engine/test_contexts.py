"""`/v1/contexts/{id}` over real HTTP, and completions behind a context."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from context_support import BASE, Entry, Layout, body_of, put, segment_hash, source, view
from engine_support import EngineClient, EngineProcess, forked_engine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from qcn_inference.contexts import Context, Contexts, Segment, Span
from qcn_inference.generate import Loaded
from qcn_inference.grid import BLOCK
from qcn_inference.service import completions, infill
from qcn_inference.service.schemas import CompletionBody, InfillBody
from qcn_inference.tokenizer import Tokenizer
from sampling import examples


@pytest.fixture
def name(engine: EngineProcess, request: pytest.FixtureRequest) -> Iterator[str]:
    """A context of this test's own; the engine forgets it afterwards."""
    name = f"test-{request.node.name[:60]}"
    yield name
    engine.client.delete(f"/v1/contexts/{name}")


def test_a_layout_is_read_once_and_then_only_what_is_new(engine: EngineProcess, name: str) -> None:
    first = put(engine, name, BASE)
    assert (first["reused"], first["computed"]) == (0, first["tokens"])
    assert sum(segment["tokens"] for segment in first["segments"]) < first["tokens"]
    again = put(engine, name, BASE, texts=False)
    assert (again["reused"], again["computed"]) == (first["tokens"], 0)
    entry = ("1.py", "v = 1\n", "overlay")
    grown = put(engine, name, [*BASE, entry])
    assert grown["reused"] == first["tokens"]
    assert grown["computed"] == grown["segments"][-1]["tokens"]


def test_only_the_text_that_is_missing_is_asked_for(engine: EngineProcess, name: str) -> None:
    put(engine, name, BASE)
    new = ("new.py", "x = 1\n", "overlay")
    answer = engine.client.put(f"/v1/contexts/{name}", json=body_of([*BASE, new], texts=False))
    assert answer.status_code == 409
    assert answer.json()["error"]["type"] == "missing_segments"
    assert answer.json()["missing"] == [segment_hash("new.py", "x = 1\n")]
    body = body_of([*BASE, new], texts=False)
    body["segments"][-1]["text"] = new[1]
    assert engine.client.put(f"/v1/contexts/{name}", json=body).status_code == 200


def test_saving_a_file_again_rolls_back_to_in_front_of_its_entry(
    engine: EngineProcess, name: str
) -> None:
    base = put(engine, name, BASE)["tokens"]
    for version in range(5):
        saved = put(engine, name, [*BASE, ("1.py", f"v = {version}\n", "overlay")])
        assert saved["reused"] == base
        assert saved["tokens"] == base + saved["segments"][-1]["tokens"]


def test_what_the_model_sees_can_be_looked_at(engine: EngineProcess, name: str) -> None:
    put(engine, name, [*BASE, ("1.py", "v = 1\n", "overlay")], hot=True)
    seen = view(engine, name)
    assert [segment["path"] for segment in seen["segments"]] == ["0.py", "1.py", "2.py", "1.py"]
    assert [segment["zone"] for segment in seen["segments"]] == ["base"] * 3 + ["overlay"]
    starts = [segment["start"] for segment in seen["segments"]]
    ends = [segment["start"] + segment["tokens"] for segment in seen["segments"]]
    assert ends == [*starts[1:], seen["tokens"]]
    # In front of every file that changes often, and of the overlay's entry; and the end.
    assert seen["checkpoints"] == [*starts, seen["tokens"]]
    assert 0 < seen["bytes"]["used"] <= seen["bytes"]["budget"]
    assert seen["refreshes"][-1]["computed"] == seen["tokens"]


def test_a_completion_behind_a_context_is_the_one_behind_its_tokens(
    engine: EngineProcess, name: str, tokenizer: Tokenizer
) -> None:
    """The repository format, whoever lays it out."""
    files = [{"filename": path, "text": text} for path, text, _ in BASE]
    asked = {"filename": "a.py", "input_prefix": "v = ", "input_suffix": "\n", "n_predict": 12}
    alone = engine.post("/infill", **asked, input_extra=files, repo_name="shop")
    tokens = put(engine, name, BASE)["tokens"]
    behind = engine.post("/infill", **asked, context=name)
    assert behind["content"] == alone["content"]
    assert behind["tokens_evaluated"] == alone["tokens_evaluated"]
    assert behind["context_tokens"] == tokens
    assert behind["tokens_cached"] >= tokens
    own = behind["tokens_evaluated"] - tokens
    assert behind["timings"]["prompt_n"] <= own


def test_superseded_lines_are_named_by_their_tokens(
    engine: EngineProcess, name: str, tokenizer: Tokenizer
) -> None:
    """The second line of a base file, and of its change all but the updated line."""
    text = "a = 1\nb = 2\nc = 3\n"
    change = "original:\nb = 2\nupdated:\nb = 3\n"
    body = body_of([("a.py", text, "base"), ("a.py", change, "overlay")])
    body["segments"][0]["superseded"] = [[1, 2]]
    body["segments"][1]["superseded"] = [[0, 3]]
    assert engine.client.put(f"/v1/contexts/{name}", json=body).status_code == 200
    found = []
    for segment, whole in zip(view(engine, name)["segments"], (text, change), strict=True):
        header = tokenizer.encode_plain(segment["path"] + "\n")
        ids = [0, *header, *tokenizer.encode_plain(whole)]
        for start, end in segment["superseded"]:
            found.append(tokenizer.decode(ids[start - segment["start"] : end - segment["start"]]))
    assert found == ["b = 2\n", "original:\nb = 2\nupdated:\n"]


@pytest.mark.parametrize("spans", [[[2, 1]], [[1, 1]], [[3, 4], [1, 2]], [[-1, 2]], [["1", 2]]])
def test_superseded_lines_that_make_no_sense_are_refused(
    engine: EngineProcess, name: str, spans: list[list[Any]]
) -> None:
    body = body_of(BASE)
    body["segments"][0]["superseded"] = spans
    answer = engine.client.put(f"/v1/contexts/{name}", json=body)
    assert answer.status_code == 400
    assert "superseded" in answer.json()["error"]["message"]


LINES = st.lists(
    st.sampled_from(["", "x = 1", "    y", "\t", "é", "    return x()", "# a\r"]),
    min_size=1,
    max_size=12,
)


@pytest.mark.long
@examples(sample=200, full=3000)
@given(lines=LINES, bounds=st.sets(st.integers(0, 14), max_size=6), ended=st.booleans())
def test_superseded_tokens_are_all_that_touch_a_superseded_line(
    tokenizer: Tokenizer, lines: list[str], bounds: set[int], ended: bool
) -> None:
    text = "\n".join(lines) + "\n" * ended
    superseded = tuple(zip(sorted(bounds)[::2], sorted(bounds)[1::2], strict=False))
    span = Span(Segment.of(tokenizer, "a.py", text), "base", False, 7, superseded)
    context = Context("c", "r", (span,), span.segment.ids)
    taken = {at for start, end in context.superseded("") for at in range(start, end)}
    assert {at for start, end in context.superseded("a.py") for at in range(start, end)} == set(
        range(7, span.end)
    )
    # Which bytes each token holds, and which bytes each line.
    header, at = len("a.py\n"), 0
    marked = {line for start, end in superseded for line in range(start, end)}
    touched = set()
    for place, token in enumerate(span.segment.ids[1:], start=8):
        length = len(tokenizer.token_bytes(token))
        for byte in range(at, at + length):
            if byte >= header:
                line = text.encode()[: byte - header].count(b"\n")
                touched |= {place} if line in marked else set()
        at += length
    assert taken == touched


def test_a_completion_is_told_what_is_superseded(loaded: Loaded) -> None:
    """And of the file that `/infill` completes nothing in front is a source: it is shown behind."""
    contexts, texts = Contexts(), {"a.py": "a = 1\nb = 2\n", "b.py": "c = 3\n"}
    segments = [Segment.of(loaded.tokenizer, path, text) for path, text in texts.items()]
    layout: Any = [
        SimpleNamespace(hash=segments[0].hash, zone="base", hot=False, superseded=[(0, 1)]),
        SimpleNamespace(hash=segments[1].hash, zone="base", hot=False, superseded=[]),
    ]
    context = contexts.compose(loaded.tokenizer, "c", "shop", layout, segments)
    contexts.put(context, contexts.arrive())
    engine: Any = SimpleNamespace(ready=lambda: loaded, infilling=lambda: loaded, contexts=contexts)
    line = context.spans[0].superseded_ids
    asked = CompletionBody(prompt="x", context="c")
    assert completions._generation(engine, asked).prompt().superseded == tuple(line)
    whole = (context.spans[1].start, len(context.ids))
    for path, spans in (("x.py", line), ("b.py", [*line, whole])):
        filled = InfillBody(filename=path, context="c", n_predict=4)
        assert infill._generation(engine, filled).prompt().superseded == tuple(spans)


def test_openais_completion_takes_a_context_too(engine: EngineProcess, name: str) -> None:
    tokens = put(engine, name, BASE)["tokens"]
    prompt = "<|file_sep|>a.py\nv = "
    text = engine.post("/v1/completions", prompt=prompt, context=name, max_tokens=4)
    filled = engine.post("/v1/completions", prompt="v = ", suffix="\n", context=name, max_tokens=4)
    assert text["context_tokens"] == filled["context_tokens"] == tokens
    for answer in (text, filled):
        assert answer["usage"]["prompt_tokens"] > tokens
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == tokens
    last = engine.events("/v1/completions", prompt=prompt, context=name, max_tokens=4)[-2]
    assert f'"context_tokens": {tokens}' in last


def test_a_completion_right_after_a_change_reads_it_first(engine: EngineProcess, name: str) -> None:
    """Nobody has waited for its refresh: the newest layout is in force at once."""
    put(engine, name, BASE)
    renamed = body_of([*BASE, ("1.py", "renamed = 1\n", "overlay")]) | {"wait": False}
    answer = engine.client.put(f"/v1/contexts/{name}", json=renamed)
    assert answer.status_code == 202
    tokens = answer.json()["tokens"]
    asked = {"filename": "a.py", "input_prefix": "v = ", "input_suffix": "\n", "n_predict": 4}
    assert engine.post("/infill", **asked, context=name)["context_tokens"] == tokens


@pytest.mark.parametrize("call", ["/infill", "/v1/completions"])
def test_a_context_that_is_not_there_is_an_error(engine: EngineProcess, call: str) -> None:
    answer = engine.client.post(call, json={"prompt": "a", "context": "nobody's"})
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "unknown_context"
    assert engine.client.get("/v1/contexts/nobodys").status_code == 404
    assert engine.client.delete("/v1/contexts/nobodys").status_code == 404


def test_a_deleted_context_is_gone_with_all_that_was_read(engine: EngineProcess, name: str) -> None:
    first = put(engine, name, BASE)
    assert engine.client.delete(f"/v1/contexts/{name}").json()["deleted"]
    assert engine.client.get(f"/v1/contexts/{name}").status_code == 404
    assert (
        engine.client.put(f"/v1/contexts/{name}", json=body_of(BASE, texts=False)).status_code
        == 409
    )
    assert put(engine, name, BASE)["computed"] == first["tokens"]


def test_a_context_that_is_deleted_is_read_no_further(engine: EngineProcess, name: str) -> None:
    layout: Layout = [(f"{n}.py", source(15, n), "base") for n in range(5, 9)]
    answer = engine.client.put(f"/v1/contexts/{name}", json=body_of(layout) | {"wait": False})
    assert answer.status_code == 202, answer.text
    assert engine.client.delete(f"/v1/contexts/{name}").json()["deleted"]
    again = put(engine, name, layout)
    assert (again["reused"], again["computed"]) == (0, again["tokens"])
    assert not view(engine, name)["reading"]


def test_a_layout_that_was_on_its_way_when_its_context_was_deleted_does_not_come_back(
    loaded: Loaded,
) -> None:
    """Its client has given it up; being read and encoded takes a second for a megabyte."""
    contexts = Contexts()

    def laid_out(name: str) -> Context:
        return contexts.compose(loaded.tokenizer, name, "shop", [], [])

    old, other = contexts.arrive(), contexts.arrive()
    contexts.delete("one")  # the first of its name: nothing is known of it yet
    assert not contexts.put(laid_out("one"), old)
    assert contexts.get("one") is None
    assert contexts.put(laid_out("other"), other)
    newer = contexts.arrive()
    assert contexts.put(laid_out("one"), newer)
    contexts.delete("one")
    assert not contexts.put(laid_out("one"), newer)
    assert contexts.put(laid_out("one"), contexts.arrive())


def test_a_context_that_does_not_fit_is_refused_with_its_counts(
    engine: EngineProcess, name: str
) -> None:
    layout: Layout = [("a.py", source(400, 1), "base"), ("b.py", "x\n", "base")]
    answer = engine.client.put(f"/v1/contexts/{name}", json=body_of(layout))
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "context_too_long"
    big, small = answer.json()["segments"]
    assert big["tokens"] > 768 > small["tokens"]
    assert engine.client.get(f"/v1/contexts/{name}").status_code == 404


@pytest.mark.parametrize(
    "change",
    [
        {"hash": "0" * 64},
        {"hash": "no hash"},
        {"path": "a\nb"},
        {"path": ""},
        {"zone": "tail"},
        {"text": 3},
    ],
)
def test_a_segment_that_is_none_is_refused(
    engine: EngineProcess, name: str, change: dict[str, object]
) -> None:
    body = body_of(BASE[:1])
    body["segments"][0] |= change
    answer = engine.client.put(f"/v1/contexts/{name}", json=body)
    assert answer.status_code == 400
    assert "v1_" not in answer.text  # no source text in a message


def test_text_of_a_segment_is_never_a_control_token(
    engine: EngineProcess, name: str, tokenizer: Tokenizer
) -> None:
    text = "<|file_sep|>secret.py\n<|fim_middle|>\n"
    answer = put(engine, name, [("<|endoftext|>.py", text, "base")])
    plain = len(tokenizer.encode_plain("<|endoftext|>.py\n")) + len(tokenizer.encode_plain(text))
    assert answer["segments"][0]["tokens"] == 1 + plain


class Restartable:
    """An engine that is left and started again on one cache."""

    def __init__(self, cache_home: Path, model: Path) -> None:
        self._cache_home, self._model = cache_home, model
        self._running = ExitStack()
        self.start()

    def start(self) -> None:
        self._running.close()
        serving = forked_engine(self._model, cache_home=self._cache_home)
        self.engine: EngineClient = self._running.enter_context(serving)

    def stop(self) -> None:
        self._running.close()


class Editing(RuleBasedStateMachine):
    """Edits of a small repository through a context: exact and cheap, whatever happened before."""

    edited: Restartable  # set by the test
    from_nothing: Callable[[tuple[Entry, ...], str], Any]  # what a fresh engine answers

    def __init__(self) -> None:
        super().__init__()
        self.base: Layout = []
        self.overlay: Layout = []
        self.restarts = 0

    @property
    def engine(self) -> EngineClient:
        return self.edited.engine

    @initialize(
        sizes=st.lists(st.integers(0, 8), min_size=1, max_size=4),
        restarts=st.sampled_from([0, 0, 1]),  # it takes as long as many edits
    )
    def begin(self, sizes: list[int], restarts: int) -> None:
        self.restarts = restarts
        self.base = [(f"{n}.py", source(size, n), "base") for n, size in enumerate(sizes)]
        self.engine.client.delete("/v1/contexts/edited")
        put(self.engine, "edited", self.base)

    @rule(file=st.integers(0, 3), words=st.integers(0, 5), seed=st.integers(0, 3))
    def save(self, file: int, words: int, seed: int) -> None:
        path = f"{file}.py"
        kept = [entry for entry in self.overlay if entry[0] != path]
        text = source(words, seed)
        before, self.overlay = self.overlay, [*kept, (path, text, "overlay")]
        answer = put(self.engine, "edited", self.layout)
        rolled_back = before[next((n for n, e in enumerate(before) if e[0] == path), len(before)) :]
        entries = answer["segments"][len(answer["segments"]) - len(rolled_back) - 1 :]
        assert answer["computed"] <= sum(entry["tokens"] for entry in entries) + BLOCK

    @precondition(lambda self: self.overlay)
    @rule()
    def compact(self) -> None:
        newest = {path: text for path, text, _ in [*self.base, *self.overlay]}
        self.base = [(path, text, "base") for path, text in newest.items()]
        self.overlay = []
        put(self.engine, "edited", self.layout)

    @precondition(lambda self: self.restarts)
    @rule()
    def restart(self) -> None:
        self.restarts -= 1
        self.edited.start()
        assert put(self.engine, "edited", self.layout)["computed"] == 0

    @rule(typed=st.sampled_from(["", "v", "v1_", "x = v1_2 + "]))
    def complete(self, typed: str) -> None:
        answer = complete_behind("edited", self.engine, typed)
        expected = self.from_nothing(tuple(self.layout), typed)
        assert answer["choices"] == expected  # log-probabilities bit for bit
        usage = answer["usage"]
        own = usage["prompt_tokens"] - answer["context_tokens"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= answer["context_tokens"]
        assert 0 < own < 200

    @property
    def layout(self) -> Layout:
        return [*self.base, *self.overlay]


HERE = "# here\n" * 12


def complete_behind(name: str, engine: EngineClient, typed: str) -> Any:
    prompt = f"<|file_sep|>typed.py\n<|fim_prefix|>{HERE}{typed}<|fim_suffix|>\n<|fim_middle|>"
    asked = {"prompt": prompt, "context": name, "max_tokens": 1, "logprobs": 20}
    return engine.post("/v1/completions", **asked, temperature=0)


@pytest.mark.long
def test_edits_of_any_kind_are_exact_and_cheap(model_folder: Path, tmp_path: Path) -> None:
    class Bound(Editing):
        pass

    with forked_engine(model_folder) as fresh:

        @cache  # of eight questions seven have been asked before
        def from_nothing(layout: tuple[Entry, ...], typed: str) -> Any:
            put(fresh, "fresh", list(layout))
            choices = complete_behind("fresh", fresh, typed)["choices"]
            fresh.client.delete("/v1/contexts/fresh")  # with all that it has read
            return choices

        Bound.edited, Bound.from_nothing = (
            Restartable(tmp_path, model_folder),
            staticmethod(from_nothing),
        )
        try:
            run_state_machine_as_test(Bound, settings=examples(sample=8, full=50))
        finally:
            Bound.edited.stop()
