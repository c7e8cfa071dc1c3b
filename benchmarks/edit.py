"""Edit to first token: what a change costs when a repository of some length has been read already.

Contexts of 4k, 16k and 64k tokens of this repository's source, read by qcn-nano with its longest
text raised (what it would answer there is beside the point: the time is that of its shape). Each
case changes the layout as the language server does, by an entry behind the base, and then asks for
one token of a completion whose own text is `TAIL` tokens. Time runs from the new layout to the
first token, without HTTP and tokenising.

*From nothing* reads the same tokens with an empty cache: ours, and transformers, whose own cache
cannot be rolled back. llama.cpp is not measured here yet.
"""

import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks import machine
from benchmarks.checkpoints import longer_nano
from benchmarks.contenders import Contender, Worker, WorkerError
from benchmarks.editor import python_files
from benchmarks.peers import PeerError
from benchmarks.results import figure

if TYPE_CHECKING:
    from qcn_inference.generate import Loaded

T = TypeVar("T")

LENGTHS, QUICK_LENGTHS = (4_096, 16_384, 65_536), (4_096,)
TAIL = 256
ROUNDS, QUICK_ROUNDS = 5, 1
CACHE_BYTES = 4 << 30
TRANSFORMERS = Contender("transformers", "bf16", "grouped_mm")
PEER_SECONDS = 900.0
# Tokens of the overlay's entry in each case; a deletion is a note of a line.
ENTRIES = {"one line": 40, "512 tokens inserted": 512, "a new file": 1_500, "a file deleted": 8}


def run(threads: int, *, quick: bool) -> dict[str, Any]:
    """Measure all lengths."""
    about = machine.describe(threads)
    folder = longer_nano(2 * max(LENGTHS))
    loaded = _load(folder, threads)
    source = _source(loaded, max(LENGTHS) + 65_536)
    lengths = QUICK_LENGTHS if quick else LENGTHS
    rounds = QUICK_ROUNDS if quick else ROUNDS
    measured = [_measure(loaded, source, length, rounds) for length in lengths]
    _ask_transformers(folder, threads, measured, source)
    return {"benchmark": "edit"} | about | {"tail_tokens": TAIL, "contexts": measured}


def _load(folder: Path, threads: int) -> "Loaded":
    import torch
    from qcn_inference.checkpoint import load_model
    from qcn_inference.generate import Loaded
    from qcn_inference.grid import Grid
    from qcn_inference.state_cache import StateCache
    from qcn_inference.tokenizer import Tokenizer

    torch.set_num_threads(threads)
    model = load_model(folder)
    tokenizer = Tokenizer(folder, model.config.vocab_size)
    return Loaded(model, tokenizer, StateCache(model.config, Grid(tokenizer), CACHE_BYTES))


def _source(loaded: "Loaded", count: int) -> list[int]:
    """Files of this repository as the engine lays them out, until there are `count` tokens."""
    from qcn_inference.contexts import Segment

    ids: list[int] = []
    number = 0
    while len(ids) < count:
        for path in python_files(200):
            name = f"{number}/{path.name}"
            ids += Segment.of(loaded.tokenizer, name, path.read_text(encoding="utf-8")).ids
        number += 1
    return ids[:count]


def _measure(loaded: "Loaded", source: list[int], length: int, rounds: int) -> dict[str, Any]:
    base, rest = source[:length], source[length:]
    print(f"edit: {length} tokens", file=sys.stderr)
    loaded.cache.clear()
    began = time.perf_counter()
    _finish(loaded.refresh(base, (length,)))
    first_read = time.perf_counter() - began
    cases: dict[str, list[tuple[float, int]]] = {name: [] for name in (*ENTRIES, "nothing")}
    for number in range(rounds):
        for case, size in (*ENTRIES.items(), ("nothing", 0)):
            at = 1_024 * (number + 1)
            layout = [*base, *_entry(loaded, rest[at : at + size])]
            cases[case].append(_edit(loaded, base, layout, _tail(loaded, rest[:TAIL])))
    loaded.cache.clear()
    nothing = _edit(loaded, [], base, _tail(loaded, rest[:TAIL]))
    return {
        "tokens": length,
        "first_read": _value(1000 * first_read, "ms"),
        "from_nothing": _value(1000 * nothing[0], "ms"),
        "cases": {
            name: {
                "time": figure([1000 * seconds for seconds, _ in found], "ms"),
                "tokens_computed": figure([tokens for _, tokens in found], "tokens"),
            }
            for name, found in cases.items()
        },
    }


def _entry(loaded: "Loaded", text: list[int]) -> list[int]:
    from qcn_inference.tokenizer import FILE_SEP

    return [loaded.tokenizer.control_id(FILE_SEP), *text] if text else []


def _tail(loaded: "Loaded", text: Sequence[int]) -> list[int]:
    """A completion in a file of its own, its text around the cursor."""
    from qcn_inference.tokenizer import FILE_SEP, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX

    control = loaded.tokenizer.control_id
    before = [control(FIM_PREFIX), *text[TAIL // 4 :]]
    after = [control(FIM_SUFFIX), *text[: TAIL // 4]]
    return [control(FILE_SEP), *after, *before, control(FIM_MIDDLE)]


def _edit(
    loaded: "Loaded", base: list[int], layout: list[int], tail: list[int]
) -> tuple[float, int]:
    """Seconds from a new layout to the first token behind it, and tokens computed for that."""
    from qcn_inference.request import GenerationRequest, Prompt, SamplingParams

    known = loaded.cache.read(base, for_logits=False).position if base else 0
    prompt = Prompt([*layout, *tail])
    request = GenerationRequest(lambda: prompt, 1, SamplingParams(temperature=0))
    began = time.perf_counter()
    refreshed = _finish(loaded.refresh(layout, (len(layout),)))
    finished = _finish(loaded.generate(request, lambda _: None))
    seconds = time.perf_counter() - began
    assert known == len(base)
    return seconds, refreshed.computed + finished.prompt_tokens - finished.cached_tokens


def _finish(steps: Generator[None, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def _ask_transformers(
    folder: Path, threads: int, measured: list[dict[str, Any]], source: list[int]
) -> None:
    """Time of transformers for the same tokens from nothing, and the ratios to the edits."""
    try:
        worker = Worker(TRANSFORMERS, folder, threads)
    except (PeerError, WorkerError) as error:
        measured[0]["transformers_not_measured"] = str(error)
        return
    try:
        for one in measured:
            prompt = source[: one["tokens"] + TAIL]
            answer = worker.measure(
                prompt, steps=0, forced=None, variant="grouped_mm", seconds=PEER_SECONDS
            )
            one["transformers_from_nothing"] = _value(1000 * answer["prefill_seconds"], "ms")
    except WorkerError as error:
        one["transformers_not_measured"] = str(error)
    finally:
        worker.close()


def _value(value: float, unit: str) -> dict[str, Any]:
    return {"unit": unit, "value": round(value, 2)}
