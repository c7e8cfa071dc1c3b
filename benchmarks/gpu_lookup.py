"""Prompt lookup's gain on a GPU: real rewrites forced on random weights of a published shape.

    python -m benchmarks.gpu_lookup write FILE [--repository PATH]
    python -m benchmarks.gpu_lookup measure FILE --synthetic NAME [--device D] [--rounds N]

As `lookup.py`, whose texts and loop these are: what is chosen is what a git history says was
written there, so that drafts come true as often as they would for a model that writes this text;
the steps that verify them, and those of plain decoding, are the model's own on this device. Both
run ahead as the engine does. The texts are qcn-nano's tokens, numbers that the larger vocabularies
have as well. Beside the gain stands what a step takes for each number of rows: by that
`speculation.StepCost` is to be fitted to the device.

`write` needs the history; the file is for a machine that has no git. Standard output of `measure`:
a JSON object a line, one for each kind of text, and `{"result"}` at the end.
"""

import argparse
import json
import statistics
import sys
import time
from array import array
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from qcn_inference import device
from qcn_inference.bench import models
from qcn_inference.bench.conditions import conditions
from qcn_inference.bench.measure import decode_seconds
from qcn_inference.bench.synthetic import random_ids
from qcn_inference.bench.waiting import engine_of
from qcn_inference.errors import DeviceError
from qcn_inference.generate import Loaded
from qcn_inference.lookup import Lookup
from qcn_inference.model import Model
from qcn_inference.planning import machine
from qcn_inference.request import Prompt
from qcn_inference.speculation import Speculation
from qcn_inference.state import State
from qcn_inference.step_cost import ROWS

from benchmarks.checkpoints import NANO
from benchmarks.histories import from_git
from benchmarks.lookup import COMMITS, MOST_TOKENS, PROMPT_TOKENS, Case, cases_of, measure, nano
from benchmarks.machine import ROOT
from benchmarks.rewrites import written

CASES = {"rewrite": 6, "typed": 4, "unlike": 2}
"""Texts of each kind, those that were really rewritten first."""
ROUNDS = 2
STEPS, STEPS_BEHIND = 9, 2048


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the texts, or measure; 1 where that cannot be done here."""
    given = _parse(arguments)
    if given.what == "write":
        given.file.parent.mkdir(parents=True, exist_ok=True)
        given.file.write_text(json.dumps(texts(given.repository)))
        return 0
    try:
        result = _measured(given)
    except (models.UnfitError, DeviceError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"result": result}), flush=True)
    return 0


def texts(repository: Path) -> dict[str, Any]:
    """Return the texts of a history, as tokens; for JSON."""
    name = "this repository" if repository == ROOT else repository.resolve().name
    history = from_git(repository, name=name, commits=COMMITS)
    cases = cases_of(nano(), written(history), max(CASES.values()))
    kinds = {
        kind: [asdict(case) | {"tokens": case.tokens} for case in cases[kind][:count]]
        for kind, count in CASES.items()
    }
    return {"history": name, "commits": len(history.commits), "kinds": kinds}


def _measured(given: argparse.Namespace) -> dict[str, Any]:
    stored = json.loads(given.file.read_text())
    on, problem = device.choose(given.device)
    device.make_current(on)
    longest = PROMPT_TOKENS + MOST_TOKENS
    model, floor = models.synthetic(given.synthetic, on, machine.measure(on), longest=longest)
    engine = engine_of(model, NANO)
    model.warm_up()
    kinds: dict[str, Any] = {}
    with torch.inference_mode():
        steps = step_seconds(model)
        print(json.dumps({"step_seconds": steps}), flush=True)
        for kind, cases in stored["kinds"].items():
            kinds[kind] = measure(engine, [_case(**case) for case in cases], given.rounds, stepping)
            print(json.dumps({kind: kinds[kind]}), flush=True)
    return {
        "model": given.synthetic,
        "placement": floor.placement,
        "device_problem": problem,
        "history": stored["history"],
        "commits": stored["commits"],
        "prompt_tokens_at_most": PROMPT_TOKENS,
        "step_seconds": steps,
        "kinds": kinds,
    } | conditions(on)


def step_seconds(model: Model) -> dict[int, float]:
    """Return the median time of a step over so many rows behind 2,048 tokens; 1 is a plain one."""
    ids, state = random_ids(model.config.vocab_size, STEPS_BEHIND), model.new_state()
    model.prefill(ids, state)
    found = {1: decode_seconds(model, state.fork())}
    for rows in ROWS:
        times = []
        for _ in range(STEPS):
            began = time.perf_counter()
            drafted = model.verify(ids[:rows], state)
            int(drafted.logits[-1].argmax())  # on a GPU this waits for the result
            times.append(time.perf_counter() - began)
            drafted.commit(0)
        found[rows] = statistics.median(times)
    return found


def _case(prompt: dict[str, Any], tokens: list[int]) -> Case:
    spans = tuple((start, end) for start, end in prompt.pop("superseded"))
    keep = tuple(prompt.pop("keep"))
    return Case(Prompt(keep=keep, superseded=spans, **prompt), tokens)


class _Silent(Lookup):
    """Finds nothing, and keeps nothing."""

    def __init__(self) -> None:
        super().__init__(array("i"), (), (), ())

    def push(self, token: int) -> None:
        """Leave it."""


def stepping(engine: Loaded) -> Loaded:
    """The engine without lookup: token by token, running ahead where the device does."""

    class Stepping(Loaded):
        def _speculation(
            self, state: State, prompt: Prompt, *, keep: bool
        ) -> Generator[None, None, Speculation]:
            del prompt, keep
            yield from ()
            return Speculation(self.model, state, _Silent())

    return Stepping(engine.model, engine.tokenizer, engine.cache)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_lookup")
    commands = parser.add_subparsers(dest="what", required=True)
    write = commands.add_parser("write", help="tokens of what a history says was written")
    write.add_argument("file", type=Path)
    write.add_argument("--repository", type=Path, default=ROOT)
    timed = commands.add_parser("measure", help="decode them with lookup and without")
    timed.add_argument("file", type=Path)
    timed.add_argument("--synthetic", choices=sorted(models.SYNTHETIC), required=True)
    timed.add_argument("--device", default="auto")
    timed.add_argument("--rounds", type=int, default=ROUNDS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
