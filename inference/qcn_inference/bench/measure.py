"""Prefill, decode and the way from an edit to the first token, in one process, without HTTP."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from qcn_inference.bench.synthetic import random_ids
from qcn_inference.errors import DeviceMemoryError
from qcn_inference.host_copies import Arriving
from qcn_inference.model import Model
from qcn_inference.passes import passes
from qcn_inference.planning.plan import Plan
from qcn_inference.request import SamplingParams
from qcn_inference.sampling import Sampler
from qcn_inference.state import State

DECODED = 32  # tokens, of which the median counts
EDIT, TAIL = 300, 300
"""Tokens of an edit's entry behind a context, and of the completion asked for behind that."""
EDITS = 3  # of which the median counts
BESIDE = 1024
"""Tokens for which there must be room behind a prompt."""
WARM_UP = 64


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured with a prompt of one length. Floors are what the machine allows at best."""

    tokens: int
    prefill_seconds: float
    prefill_floor: float
    prefill_operations: int
    decode_seconds: float  # of one token
    decode_floor: float
    decode_bytes: int  # weights, state and KV that one token reads and writes
    edit_seconds: float  # until the first token behind an edit of a context of this length
    edit_floor: float
    edit_operations: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A length that was not measured, and why."""

    tokens: int
    reason: str


def measure(
    model: Model,
    floor: Plan,
    lengths: Sequence[int],
    *,
    patience: float,
    report: Callable[[str], None],
) -> Iterator[Figures | LeftOut]:
    """Measure each length, the shortest first; what takes longer than `patience` is left out, and
    what there is no room for.

    Args:
        model: no one else uses it.
        floor: a plan of the model on this machine, for what would be the least.
        lengths: tokens of the prompts.
        patience: seconds for one prompt.
        report: told what is being done.
    """
    model.warm_up()
    _prefilled(model, _ids(model, WARM_UP))
    rate = None  # operations per second, as reached last
    for tokens in sorted(lengths):
        operations = model.config.prefill_operations(0, tokens)
        if rate is not None and operations / rate > patience:
            yield LeftOut(tokens, f"it would take about {operations / rate:,.0f} s")
            continue
        report(f"a prompt of {tokens:,} tokens")
        try:
            figures = _at(model, floor, tokens)
        except (torch.OutOfMemoryError, DeviceMemoryError) as error:
            yield LeftOut(tokens, str(error).partition("\n")[0])
            continue
        rate = operations / figures.prefill_seconds
        yield figures


def _at(model: Model, floor: Plan, tokens: int) -> Figures:
    state, seconds = _prefilled(model, _ids(model, tokens))
    edit = statistics.median([_edit_seconds(model, state) for _ in range(EDITS)])
    return Figures(
        tokens=tokens,
        prefill_seconds=seconds,
        prefill_floor=floor.prefill_seconds(tokens),
        prefill_operations=model.config.prefill_operations(0, tokens),
        decode_seconds=decode_seconds(model, state),
        decode_floor=floor.decode_seconds(tokens),
        decode_bytes=floor.decode_bytes(tokens),
        edit_seconds=edit,
        edit_floor=floor.prefill_seconds(EDIT + TAIL, tokens),
        edit_operations=model.config.prefill_operations(tokens, tokens + EDIT + TAIL),
    )


def _prefilled(model: Model, ids: Sequence[int]) -> tuple[State, float]:
    state = model.new_state()
    began = time.perf_counter()
    int(model.prefill(ids, state).argmax())  # on a GPU this waits for the result
    return state, time.perf_counter() - began


def _edit_seconds(model: Model, context: State) -> float:
    """From the state behind a context: the entry of an edit, and the completion's own tokens.

    As the engine reads what it does not know when a completion is asked for: two blocks, on a GPU
    in one pass, with a checkpoint behind the entry.
    """
    start = context.position
    entry, end = start + EDIT, start + EDIT + TAIL
    ids = _ids(model, EDIT + TAIL)
    began = time.perf_counter()
    state = context.fork()
    for part in passes([(start, entry), (entry, end)], {entry}, model.pass_limits):
        logits = model.prefill(ids[part.start - start : part.end - start], state, part)
    int(logits.argmax())  # on a GPU this waits for the result
    return time.perf_counter() - began


def decode_seconds(model: Model, state: State) -> float:
    """Return the time from one token's arrival to the next one's, as the engine decodes greedily.

    On a GPU the next step is queued before the host has seen the token. `state` goes on by some.
    """
    sampler, arrived = Sampler(SamplingParams(temperature=0)), []
    logits = model.decode(0, state)
    for _ in range(DECODED + 1):
        token = sampler.draw(logits)
        arriving = Arriving(token)
        logits = model.decode(token, state)
        arriving.wait()
        arrived.append(time.perf_counter())
    return statistics.median(after - before for before, after in pairwise(arrived))


def _ids(model: Model, count: int) -> Sequence[int]:
    return random_ids(model.config.vocab_size, count)
