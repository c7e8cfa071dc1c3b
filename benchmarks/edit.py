"""Edit to first token: what a change costs when a repository of some length has been read already.

Contexts of 4k, 16k and 64k tokens of this repository's source (`edits.py`), read by qcn-nano with
its longest text raised (what it would answer there is beside the point: the time is that of its
shape). Each case is a change, and then the first token of a completion whose own text is some 260
tokens, over HTTP from a client on this machine:

- *ours*: the layout as the language server sends it (`PUT /v1/contexts`, answered when it is read),
  then `/infill` behind it;
- *llama.cpp, our layout*: its server on the same weights, given the same token ids: what an
  append-only layout does for a cache of prompts with checkpoints. Before each case it reads what
  stood there before, so that its last checkpoint lies right where the news begins;
- *llama.cpp, file order*: the usual prompt, all files in the order of their paths as they are now,
  one change after the other;
- *from nothing*: the same tokens with nothing known, of ours, llama.cpp, and transformers, whose
  cache cannot be rolled back.

Nothing that is asked for in one round was asked for in another: no two editions read the same.
"""

import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from qcn_indexer.layout import Layout

from benchmarks import machine
from benchmarks.checkpoints import longer_nano
from benchmarks.contenders import Contender, Worker, WorkerError
from benchmarks.edit_servers import (
    CONTEXT,
    REPOSITORY_NAME,
    Asked,
    Llama,
    Ours,
    llama_server,
    our_engine,
)
from benchmarks.editor import REPOSITORY
from benchmarks.edits import Case, Edits, Tail
from benchmarks.peers import PeerError
from benchmarks.results import figure
from qcn_lsp.commands.places import source_files

if TYPE_CHECKING:
    from qcn_inference import contexts

LENGTHS = (4_096, 16_384, 65_536)
ROUNDS, ROUNDS_WHEN_LONG, LONG = 5, 3, 65_536
LONGEST_TEXT = 2 * max(LENGTHS)
LLAMA_CONTEXT = max(LENGTHS) + 16_384
TRANSFORMERS = Contender("transformers", "bf16", "grouped_mm")
PEER_SECONDS = 900.0
OURS, OUR_LAYOUT, FILE_ORDER = "ours", "llama.cpp, our layout", "llama.cpp, file order"
# Each of these is read from nothing, as it turns out; of the longest context the first alone.
IN_FILE_ORDER = ("one line", "512 tokens inserted", "a new file", "a file deleted")
IN_FILE_ORDER_WHEN_LONG = IN_FILE_ORDER[:1]

Results = dict[str, dict[str, list[Asked]]]  # by case and contender


def run(threads: int, *, quick: bool, lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    """Measure contexts of these lengths, in tokens."""
    about = machine.describe(threads)
    folder = longer_nano(LONGEST_TEXT)
    prompts, not_measured = Prompts(folder), dict[str, str]()
    with ExitStack() as stack:
        ours = stack.enter_context(our_engine(folder, threads))
        llama = transformers = None
        try:
            llama = stack.enter_context(llama_server(folder, threads, LLAMA_CONTEXT))
        except (PeerError, WorkerError) as error:
            not_measured["llama.cpp"] = str(error)
        try:
            transformers = Worker(TRANSFORMERS, folder, threads)
            stack.callback(transformers.close)
        except (PeerError, WorkerError) as error:
            not_measured["transformers"] = str(error)
        contexts = []
        for length in [min(lengths)] if quick else lengths:
            rounds = 1 if quick else ROUNDS_WHEN_LONG if length >= LONG else ROUNDS
            bench = _Bench(prompts, length, ours, llama)
            contexts.append(bench.measure(rounds, transformers))
            ours.forget()
    return {"benchmark": "edit"} | about | {"contexts": contexts, "not_measured": not_measured}


class Prompts:
    """The token ids that our engine makes of a layout and a completion behind it, for its peers."""

    def __init__(self, folder: Path) -> None:
        from qcn_inference.config import load_config
        from qcn_inference.tokenizer import Tokenizer

        config = load_config(folder)
        self._order, self._room = config.fim_order, config.max_position_embeddings
        self._tokenizer = Tokenizer(folder, config.vocab_size)
        self._encoded: dict[str, contexts.Segment] = {}

    def count(self, text: str) -> int:
        """How many tokens a text takes."""
        return len(self._tokenizer.encode_plain(text))

    def layout(self, layout: Layout) -> Sequence[int]:
        """The ids of a layout."""
        from qcn_inference import contexts

        for one in layout.segments:
            if one.hash not in self._encoded:
                path = str(one.path)
                self._encoded[one.hash] = contexts.Segment.of(self._tokenizer, path, one.text)
        segments = [self._encoded[one.hash] for one in layout.segments]
        places: Any = [
            SimpleNamespace(hash=one.hash, zone=one.zone, hot=one.hot, superseded=())
            for one in layout.segments
        ]
        composed = contexts.Contexts().compose(
            self._tokenizer, CONTEXT, REPOSITORY_NAME, places, segments
        )
        return composed.ids

    def whole(self, layout: Layout, tail: Tail) -> Sequence[int]:
        """The ids of a layout and a completion behind it."""
        from qcn_inference.fim import InfillText, infill_prompt

        text = InfillText(tail.prefix, tail.suffix, str(tail.path), REPOSITORY_NAME)
        front = self.layout(layout)
        room = self._room - len(front) - 1  # for the token that is generated
        return infill_prompt(self._tokenizer, text, room, self._order, front).ids


@dataclass
class _Bench:
    """One length."""

    prompts: Prompts
    length: int
    ours: Ours
    llama: Llama | None
    results: Results = field(default_factory=dict)

    def measure(self, rounds: int, transformers: Worker | None) -> dict[str, Any]:
        """All cases, each so many times."""
        files = {
            PurePosixPath(path.relative_to(REPOSITORY).as_posix()): path.read_text("utf-8")
            for path in source_files(REPOSITORY)
            if path.suffix == ".py"
        }
        edits = Edits(files, self.length, self.prompts.count)
        self._say("from nothing")
        nothing = self._from_nothing(edits.cases["nothing"](0), transformers)
        for number in range(rounds):
            for name, make in edits.cases.items():
                self._say(f"round {number + 1} of {rounds}: {name}")
                self._case(name, make(number), llama_first=number % 2 == 1)
        if self.llama:
            self._in_file_order(edits)
        return {
            "tokens": len(self.prompts.layout(edits.base.layout)),
            "files": len(edits.texts),
            "from_nothing": nothing,
            "cases": {name: figures_of(found) for name, found in self.results.items()},
        }

    def _from_nothing(self, case: Case, transformers: Worker | None) -> dict[str, Any]:
        """One completion when nothing has been read yet."""
        layout, tail = case.after.layout, case.tail
        ids = self.prompts.whole(layout, tail)
        found = {OURS: _value(self.ours.ask(layout, tail))}
        if self.llama:
            self._say("from nothing: llama.cpp")
            found["llama.cpp"] = _value(self.llama.ask(ids, from_nothing=True))
        if transformers:
            self._say("from nothing: transformers")
            answer = transformers.measure(
                list(ids), steps=0, forced=None, variant="grouped_mm", seconds=PEER_SECONDS
            )
            asked = Asked(answer["prefill_seconds"], len(ids), len(ids))
            found["transformers"] = _value(asked)
        return found

    def _case(self, name: str, case: Case, *, llama_first: bool) -> None:
        ids = self.prompts.whole(case.after.layout, case.tail)
        if case.asked:
            before = self.prompts.whole(case.before.layout, case.asked)
        else:
            before = self.prompts.layout(case.before.layout)
        for llama_turn in (llama_first, not llama_first):
            if not llama_turn:
                if case.asked:
                    self.ours.ask(case.before.layout, case.asked)
                else:
                    self.ours.read(case.before.layout)
                asked = self.ours.ask(case.after.layout, case.tail)
                if asked.prompt != len(ids):
                    raise RuntimeError(f"{name}: ours has read another prompt than its peers")
                self._add(name, OURS, asked)
            elif self.llama:
                self.llama.ask(before, tokens=0)
                self._add(name, OUR_LAYOUT, self.llama.ask(ids))

    def _in_file_order(self, edits: Edits) -> None:
        """The same changes in a prompt of all files in the order of their paths."""
        assert self.llama is not None
        self.llama.ask(self.prompts.layout(edits.base.layout), tokens=0)
        for name in IN_FILE_ORDER_WHEN_LONG if self.length >= LONG else IN_FILE_ORDER:
            self._say(f"in file order: {name}")
            case = edits.cases[name](0)
            ids = self.prompts.whole(case.in_file_order, case.tail)
            self._add(name, FILE_ORDER, self.llama.ask(ids))

    def _add(self, name: str, who: str, asked: Asked) -> None:
        self.results.setdefault(name, {}).setdefault(who, []).append(asked)

    def _say(self, what: str) -> None:
        print(f"edit: {self.length} tokens: {what}", file=sys.stderr, flush=True)


def figures_of(found: dict[str, list[Asked]]) -> dict[str, Any]:
    """What one case took each contender, and how their times compare."""
    return {
        "measured": {who: _figures(asked) for who, asked in found.items()},
        "ratios": _ratios(found),
    }


def _figures(asked: Sequence[Asked]) -> dict[str, Any]:
    return {
        "time": figure([1000 * one.seconds for one in asked], "ms"),
        "tokens_computed": figure([one.computed for one in asked], "tokens"),
    }


def _ratios(found: dict[str, list[Asked]]) -> dict[str, Any]:
    """The times of each peer over ours of the same round; in file order, over our median."""
    ratios = {}
    if theirs := found.get(OUR_LAYOUT):
        pairs = zip(theirs, found[OURS], strict=True)
        ratios[f"{OUR_LAYOUT} / ours"] = figure([a.seconds / b.seconds for a, b in pairs], "times")
    if theirs := found.get(FILE_ORDER):
        ours = statistics.median(one.seconds for one in found[OURS])
        ratios[f"{FILE_ORDER} / ours"] = figure([one.seconds / ours for one in theirs], "times")
    return ratios


def _value(asked: Asked) -> dict[str, Any]:
    return {"unit": "ms", "value": round(1000 * asked.seconds, 2), "tokens": asked.computed}
