"""Decoding with prompt lookup beside plain decoding: texts that were really written, forced.

A small model seldom writes what a person wrote, and random weights never do. So the choice of each
token is replaced by what a git history says was written there (`rewrites.py`); all else is the
engine's own loop, on qcn-nano. What the lookup proposes, how much of it is verified, and what that
takes is then as it would be for a model that writes this text.

Kinds: `rewrite` and `typed`, see `rewrites.py`; `foreign`: code of Python's standard library behind
the same prompts, which repeats nothing of them but idioms; `unlike`: tokens drawn at random, where
no lookup finds anything and its cost is all that is left; `own`: what qcn-nano itself completes,
greedily, where lines were typed.

Both ways take turns, case by case, and a ratio is taken within a case. Decoding counts from the
first logits to the end, indexing the whole prompt anew included. Beside seconds stand those of the
CPU, which other work on the machine changes less.
"""

import argparse
import ast
import inspect
import random
import statistics
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks import machine
from benchmarks.checkpoints import NANO
from benchmarks.histories import from_git
from benchmarks.results import figure
from benchmarks.rewrites import Written, some, written

if TYPE_CHECKING:
    from qcn_inference.generate import Loaded
    from qcn_inference.request import Finished, Prompt

COMMITS = 400
CASES, QUICK_CASES = 8, 2
ROUNDS, QUICK_ROUNDS = 2, 1
PROMPT_TOKENS, MOST_TOKENS = 4096, 128
FEWEST_TOKENS = 12
FOREIGN = (argparse, ast, statistics, tarfile, textwrap)
KINDS = ("rewrite", "typed", "foreign", "unlike", "own")


@dataclass(frozen=True, slots=True)
class Case:
    """What is decoded."""

    prompt: "Prompt"
    tokens: list[int] | None  # that are forced; None: what the model chooses


@dataclass(slots=True)
class _Measured:
    """One way through some cases: a row for each round of each case."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0

    def add(self, finished: "Finished", cpu_seconds: float) -> None:
        self.seconds.append(finished.predicted_seconds)
        self.cpu_seconds.append(cpu_seconds)
        self.tokens.append(finished.completion_tokens)
        self.drafted += finished.drafted_tokens
        self.accepted += finished.accepted_tokens

    @property
    def speeds(self) -> list[float]:
        return [n / seconds for n, seconds in zip(self.tokens, self.seconds, strict=True)]


def run(threads: int, *, quick: bool, repository: Path) -> dict[str, Any]:
    """Replay what was written in the history of the repository at that path."""
    import torch

    about = machine.describe(threads)
    torch.set_num_threads(threads)
    name = "this repository" if repository == machine.ROOT else repository.resolve().name
    history = from_git(repository, name=name, commits=COMMITS)
    loaded = nano()
    cases = cases_of(loaded, written(history), QUICK_CASES if quick else CASES)
    rounds = QUICK_ROUNDS if quick else ROUNDS
    kinds = {}
    with torch.inference_mode():
        decode(loaded, cases["rewrite"][0])  # every size of step is compiled at its first use
        for kind in KINDS:
            print(f"lookup: {kind}, {len(cases[kind])} texts", file=sys.stderr)
            if measured := measure(loaded, cases[kind], rounds):
                kinds[kind] = measured
    return (
        {"benchmark": "lookup"}
        | about
        | {
            "model": NANO.name,
            "history": name,
            "commits": len(history.commits),
            "prompt_tokens_at_most": PROMPT_TOKENS,
            "kinds": kinds,
        }
    )


def nano() -> "Loaded":
    """The engine of qcn-nano."""
    from qcn_inference.checkpoint import load_model
    from qcn_inference.generate import Loaded
    from qcn_inference.grid import Grid
    from qcn_inference.state_cache import StateCache
    from qcn_inference.tokenizer import Tokenizer

    model = load_model(NANO)
    tokenizer = Tokenizer(NANO, model.config.vocab_size)
    return Loaded(model, tokenizer, StateCache(model.config, Grid(tokenizer), 256 * 2**20))


def cases_of(loaded: "Loaded", texts: list[Written], count: int) -> dict[str, list[Case]]:
    """The cases of each kind."""
    encode, draw = loaded.tokenizer.encode_plain, random.Random(0)
    long_enough = [one for one in texts if len(encode(one.text)) >= FEWEST_TOKENS]
    cases: dict[str, list[Case]] = {}
    for kind in ("rewrite", "typed"):
        cases[kind] = [
            Case(_prompt(loaded, one), encode(one.text)[:MOST_TOKENS])
            for one in some(long_enough, count, kind)
        ]
    prompts = [case.prompt for case in cases["typed"]]
    sources = [encode(inspect.getsource(module)) for module in FOREIGN]
    places = [(ids, draw.randrange(len(ids) - MOST_TOKENS)) for ids in sources]
    cases["foreign"] = [
        Case(prompt, ids[at : at + MOST_TOKENS])
        for prompt, (ids, at) in zip(prompts, places * len(prompts), strict=False)
    ]
    plain = [token for token in sorted(set(sources[0])) if token not in loaded.stop_ids]
    cases["unlike"] = [Case(prompt, draw.choices(plain, k=MOST_TOKENS)) for prompt in prompts]
    cases["own"] = [Case(prompt, None) for prompt in prompts]
    return cases


def _prompt(loaded: "Loaded", one: Written) -> "Prompt":
    from qcn_inference.fim import ContextFile, InfillText, infill_prompt

    extra = tuple(ContextFile(str(path), text) for path, text in one.front)
    text = InfillText(one.prefix, one.suffix, str(one.path), "repository", extra)
    return infill_prompt(loaded.tokenizer, text, PROMPT_TOKENS, loaded.model.config.fim_order)


def measure(
    loaded: "Loaded",
    cases: list[Case],
    rounds: int,
    stepping: "Callable[[Loaded], Loaded] | None" = None,
) -> dict[str, Any] | None:
    """Decode all cases both ways, in turns; None where nothing was long enough to be timed.

    `stepping` makes of the engine the one without lookup.
    """
    ways = {"with_lookup": _drafting, "plain": stepping or _stepping}
    measured = {name: _Measured() for name in ways}
    other, texts = machine.OtherWork(), 0
    for case in cases:
        first, _ = decode(loaded, case)  # reads the prompt
        if first.completion_tokens < FEWEST_TOKENS:  # the model has nothing to say here
            continue
        texts += 1
        for turn in range(rounds):
            other.begin()
            began = time.process_time()
            for name in sorted(ways, reverse=bool(turn % 2)):
                measured[name].add(*decode(ways[name](loaded), case))
            other.end(time.process_time() - began)
    if not texts:
        return None
    ours, plain = measured["with_lookup"], measured["plain"]
    ratios = [ahead / behind for ahead, behind in zip(ours.speeds, plain.speeds, strict=True)]
    return {
        "texts": texts,
        "tokens": sum(ours.tokens) // rounds,
        "with_lookup": figure(ours.speeds, "tokens/s"),
        "plain": figure(plain.speeds, "tokens/s"),
        "ratio": figure(ratios, "times"),
        "ratio_of_all_seconds": sum(plain.seconds) / sum(ours.seconds),
        "ratio_of_all_cpu_seconds": sum(plain.cpu_seconds) / sum(ours.cpu_seconds),
        "drafted_tokens": ours.drafted // rounds,
        "accepted_tokens": ours.accepted // rounds,
        "cores_busy_with_other_work": figure(other.cores, "cores"),
    }


def _drafting(loaded: "Loaded") -> "Loaded":
    """The engine, with nothing indexed."""
    from dataclasses import replace

    from qcn_inference.lookup import BlockIndexes

    return replace(loaded, indexes=BlockIndexes())


def _stepping(loaded: "Loaded") -> "Loaded":
    """The engine without lookup, as it was before."""
    from qcn_inference.decoding import OneByOne
    from qcn_inference.generate import Loaded

    class Stepping(Loaded):
        def _speculation(
            self, state: Any, prompt: Any, *, keep: bool
        ) -> Generator[None, None, Any]:
            del prompt, keep
            yield from ()
            return OneByOne(self.model, state)

    return Stepping(loaded.model, loaded.tokenizer, loaded.cache)


class _Forced:
    """Stands where `Sampler` does: chooses as greedily, and says what was written."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens: Iterator[int] = iter(tokens)

    def draw(self, logits: Any) -> Any:
        return logits.argmax(keepdim=True).fill_(next(self._tokens))

    def choose_behind(self, drafted: Any, row: int) -> int:
        del row
        assert drafted.likeliest
        return next(self._tokens)


def decode(loaded: "Loaded", case: Case) -> tuple["Finished", float]:
    """Answer a case; how it ended, and the CPU seconds from the first logits on."""
    from qcn_inference.request import GenerationRequest, SamplingParams
    from qcn_inference.sampling import Sampler

    tokens = case.tokens
    request = GenerationRequest(
        prompt=lambda: case.prompt,
        max_tokens=MOST_TOKENS if tokens is None else len(tokens),
        sampling=SamplingParams(temperature=0),
    )
    began: list[float] = []

    def choosing(params: SamplingParams) -> Any:
        """What the engine makes when it has the first logits."""
        began.append(time.process_time())
        return Sampler(params) if tokens is None else _Forced(tokens)

    steps = loaded.generate(request, lambda chunk: None)
    with mock.patch("qcn_inference.decoding.Sampler", choosing):
        while True:
            try:
                next(steps)
            except StopIteration as end:
                finished: Finished = end.value
                return finished, time.process_time() - began[0]
