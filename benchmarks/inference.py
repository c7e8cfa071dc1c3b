"""Prefill and decode speed on the same weights and cores: ours, transformers, llama.cpp.

Method. Each runtime and precision is a process that keeps its model loaded. A round measures each
contender once, one after the other; the next round begins with another one. What the machine does
beside falls on all alike, and ratios are taken within a round before their median is. Before
anything counts, each reads the prompt and decodes greedily once: that warms it up and gives the
reference's tokens. In the counted rounds all decode exactly those tokens, so that a near-tie
between two random experts does not send two contenders down different roads; how often each would
have chosen the reference's next token is reported as `agreement`.

Peers count at their best: a ratio is against the variant (precision and experts' implementation)
whose median is highest, for prefill and for decode separately.
"""

import argparse as prompt_source  # its source is the prompt
import inspect
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.checkpoints import NANO, random_checkpoint
from benchmarks.contenders import CONTENDERS, REFERENCE, Contender, Worker, WorkerError
from benchmarks.floor import cost
from benchmarks.peers import PeerError
from benchmarks.results import figure
from benchmarks.shapes import RANDOM_186M

OURS = Contender("ours", "bf16")
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Work:
    """How much is measured."""

    prompt_tokens: int
    steps: int  # tokens decoded
    rounds: int
    fewest_rounds: int
    seconds: float  # per model; no round starts after it once the fewest are done


FULL = Work(prompt_tokens=2048, steps=64, rounds=7, fewest_rounds=3, seconds=120)
QUICK = Work(prompt_tokens=2048, steps=16, rounds=1, fewest_rounds=1, seconds=0)


@dataclass
class Samples:
    """What one contender did in the counted rounds; None where it took no part."""

    answers: list[dict[str, Any] | None] = field(default_factory=list)

    def speed(self, phase: str, tokens: int, clock: str = "seconds") -> list[float | None]:
        """Tokens per second, round by round."""
        return [tokens / one[f"{phase}_{clock}"] if one else None for one in self.answers]


def run(threads: int, *, quick: bool) -> dict[str, Any]:
    """Measure the embedded model and the random 186 M shape."""
    work = QUICK if quick else FULL
    about = machine.describe(threads)
    models = [
        ("qcn-nano", NANO, text_prompt(work.prompt_tokens)),
        ("random-186M", random_checkpoint(RANDOM_186M), random_prompt(work.prompt_tokens)),
    ]
    measured = [
        measure_model(name, folder, prompt, work=work, threads=threads, contenders=CONTENDERS)
        for name, folder, prompt in models
    ]
    return {"benchmark": "inference"} | about | {"models": measured}


def text_prompt(count: int) -> list[int]:
    """The first tokens of a module of the standard library, by qcn-nano's tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(inspect.getsource(prompt_source)).ids
    return ids[:count]


def random_prompt(count: int) -> list[int]:
    """Random ids, none of them a control token."""
    chooser = random.Random(0)
    return [chooser.randrange(8000) for _ in range(count)]


def measure_model(
    name: str,
    folder: Path,
    prompt: list[int],
    *,
    work: Work,
    threads: int,
    contenders: tuple[Contender, ...],
) -> dict[str, Any]:
    """All contenders on one checkpoint."""
    other_work = machine.OtherWork()
    with ExitStack() as stack:
        workers = _Workers(folder, threads, stack)
        present = workers.start(contenders)
        greedy = workers.warm_up(present, prompt, work.steps)
        if not greedy:
            raise RuntimeError(f"{name}: nothing could be measured: {workers.problems}")
        reference = greedy.get(REFERENCE) or next(iter(greedy.values()))  # greedy tokens
        samples = {contender: Samples() for contender in greedy}
        began = time.monotonic()
        for number in range(work.rounds):
            if number >= work.fewest_rounds and time.monotonic() - began > work.seconds:
                break
            for contender in _rotated(list(greedy), number):
                other_work.begin()
                answer = workers.measure(contender, prompt, work.steps, forced=reference[:-1])
                if answer:
                    other_work.end(answer["prefill_cpu_seconds"] + answer["decode_cpu_seconds"])
                samples[contender].answers.append(answer)
            print(f"{name}: round {number + 1} done", file=sys.stderr)
    counted = {contender: found for contender, found in samples.items() if any(found.answers)}
    return {
        "name": name,
        "prompt_tokens": len(prompt),
        "decoded_tokens": work.steps,
        "contenders": {
            contender.name: _contender_figures(found, greedy[contender], reference, len(prompt))
            for contender, found in counted.items()
        },
        "not_measured": workers.problems,
        "ratios": _ratios(counted, len(prompt), work.steps),
        "floor": _floors(folder, counted, len(prompt), work.steps, threads),
        "cores_busy_with_other_work": figure(other_work.cores, "cores"),
    }


class _Workers:
    """The workers of one checkpoint; one that fails is left out from then on, with its reason."""

    def __init__(self, folder: Path, threads: int, stack: ExitStack) -> None:
        self.problems: dict[str, str] = {}
        self._folder = folder
        self._threads = threads
        self._stack = stack
        self._workers: dict[tuple[str, ...], Worker] = {}

    def start(self, contenders: tuple[Contender, ...]) -> list[Contender]:
        """Start a worker for each; return those that stand ready."""
        for contender in contenders:
            if contender.worker in self._workers or contender.name in self.problems:
                continue
            try:
                worker = Worker(contender, self._folder, self._threads)
            except (PeerError, WorkerError) as error:
                for other in contenders:
                    if other.worker == contender.worker:
                        self.problems[other.name] = str(error)
                continue
            self._stack.callback(worker.close)
            self._workers[contender.worker] = worker
        return [contender for contender in contenders if contender.worker in self._workers]

    def warm_up(
        self, contenders: list[Contender], prompt: list[int], steps: int
    ) -> dict[Contender, list[int]]:
        """Run each once on its own choices; return them."""
        answers = {one: self.measure(one, prompt, steps, forced=None) for one in contenders}
        return {one: answer["tokens"] for one, answer in answers.items() if answer}

    def measure(
        self, contender: Contender, prompt: list[int], steps: int, *, forced: list[int] | None
    ) -> dict[str, Any] | None:
        """Measure once; None when the contender fails or has failed."""
        if contender.name in self.problems:
            return None
        worker, variant = self._workers[contender.worker], contender.variant
        try:
            return worker.measure(prompt, steps=steps, forced=forced, variant=variant, seconds=120)
        except WorkerError as error:
            self.problems[contender.name] = str(error)
            return None


def _rotated(contenders: list[Contender], number: int) -> Iterator[Contender]:
    start = 3 * number % len(contenders)  # 3, so that the same one does not always go before ours
    yield from contenders[start:] + contenders[:start]


def _contender_figures(
    samples: Samples, greedy: list[int], reference: list[int], prompt_tokens: int
) -> dict[str, Any]:
    steps = len(reference) - 1
    figures: dict[str, Any] = {}
    for phase, tokens in zip(PHASES, (prompt_tokens, steps), strict=True):
        figures[phase] = figure(_known(samples.speed(phase, tokens)), "tokens/s")
        # On a machine that is busy with other work this says more than the clock on the wall.
        per_cpu = figure(_known(samples.speed(phase, tokens, "cpu_seconds")), "tokens/CPU s")
        figures[f"{phase}_per_cpu_second"] = per_cpu
    forced = next(answer["tokens"] for answer in samples.answers if answer)
    pairs = list(zip(forced, reference, strict=True))
    free = next((i for i, (a, b) in enumerate(zip(greedy, reference, strict=True)) if a != b), None)
    figures["agreement"] = {
        "teacher_forced": f"{sum(a == b for a, b in pairs)} of {len(pairs)}",
        "greedy_tokens_before_first_difference": len(reference) if free is None else free,
    }
    return figures


def _ratios(samples: dict[Contender, Samples], prompt_tokens: int, steps: int) -> dict[str, Any]:
    """Ours against each peer's best variant, round by round."""
    if OURS not in samples:
        return {}
    ratios: dict[str, Any] = {}
    for phase, tokens in zip(PHASES, (prompt_tokens, steps), strict=True):
        ours = samples[OURS].speed(phase, tokens)
        for runtime in ("transformers", "llama.cpp"):
            speeds = {
                contender: found.speed(phase, tokens)
                for contender, found in samples.items()
                if contender.runtime == runtime
            }
            if not speeds:
                continue
            best = max(speeds, key=lambda one: statistics.median(_known(speeds[one])))
            pairs = zip(ours, speeds[best], strict=True)
            ratio = figure([a / b for a, b in pairs if a and b], "times")
            ratios[f"{phase}_over_{runtime}"] = ratio | {"against": best.name}
    return ratios


def _floors(
    folder: Path, samples: dict[Contender, Samples], prompt_tokens: int, steps: int, threads: int
) -> dict[str, Any]:
    """What the hardware allows our bf16 runtime, and how near it comes."""
    least = cost(folder, prompt_tokens=prompt_tokens, element_bytes=2)
    bandwidth = machine.read_bandwidth(least.decode_bytes, threads)
    rate = machine.product_rate("bfloat16", threads)
    ceilings = {
        "prefill": prompt_tokens * rate / least.prefill_operations,
        "decode": bandwidth / least.decode_bytes,
    }
    floor: dict[str, Any] = {
        "parameters": least.parameters,
        "active_parameters": least.active_parameters,
        "bytes_per_decoded_token": least.decode_bytes,
        "operations_per_prompt": least.prefill_operations,
        "read_bandwidth": figure([bandwidth / 1e9], "GB/s"),
        "bf16_product_rate": figure([rate / 1e9], "GFLOP/s"),
        "fp32_product_rate": figure([machine.product_rate("float32", threads) / 1e9], "GFLOP/s"),
    }
    for phase, tokens in zip(PHASES, (prompt_tokens, steps), strict=True):
        floor[f"{phase}_ceiling"] = figure([ceilings[phase]], "tokens/s")
        if OURS in samples:
            reached = (
                statistics.median(_known(samples[OURS].speed(phase, tokens))) / ceilings[phase]
            )
            floor[f"{phase}_share_of_ceiling"] = figure([reached], "of 1")
    return floor


def _known(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]
