"""A whole model run by its kernels: interpreted, in a process that does so, or on a GPU.

What is called stands here, in a module of its own, because a process that interprets imports it
without pytest's. Ids lie on the device that the model is to run on; it is loaded there.
"""

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from disk_support import leave, logits_behind, new_session, refresh
from engine_support import VOCAB_SIZE, answer_of, request_of
from launches import Launches
from qcn_inference.checkpoint import load_model
from qcn_inference.config import KvCacheDtype
from qcn_inference.decoder import Kind
from qcn_inference.device_memory import DeviceMemory
from qcn_inference.generate import Loaded
from qcn_inference.grid import Grid
from qcn_inference.kept import DeltaNetState, KvBlock
from qcn_inference.layers import DecoderLayer, SparseMoe
from qcn_inference.model import Model
from qcn_inference.offload.device import CudaDevice, ExpertDevice, Experts
from qcn_inference.offload.layers import Offload
from qcn_inference.page_table import PageTable
from qcn_inference.passes import Pass
from qcn_inference.request import SamplingParams
from qcn_inference.seat import Seat
from qcn_inference.state import State
from qcn_inference.state_cache import Reading, StateCache, Stretch
from qcn_inference.tokenizer import FILE_SEP, Tokenizer
from qcn_kernels.fp8 import Fp8Matrices
from qcn_kernels.linear import Stacked
from simulated_captures import SimulatedCaptures
from simulated_device import SimulatedDevice
from torch import Tensor

STATES_BYTES = 16 << 20


def loaded_beside(
    ids: Tensor, folder: str, dtype: torch.dtype | None = None, kept: KvCacheDtype = "auto"
) -> Model:
    """Load a checkpoint onto the device on which these ids lie."""
    model = load_model(Path(folder), dtype=dtype, device=str(ids.device))
    model.reserve(STATES_BYTES, kept)
    return model


def read_and_step(
    *,
    folder: str,
    ids: Tensor,
    prompt: int,
    drafted: int,
    dtype: torch.dtype | None,
    kept: KvCacheDtype = "auto",
) -> tuple[Tensor, Tensor]:
    """Read a prompt; behind it verify a draft, of which nothing stays; then decode the rest.

    Returns:
        Logits of the prompt's ids and of the `drafted` ones behind them [prompt + drafted, V], and
        of each id behind the prompt, decoded one by one [T - prompt, V].
    """
    model = loaded_beside(ids, folder, dtype, kept)
    state = model.new_state()
    read = model.prefill(ids[:prompt], state, all_logits=True)
    draft = model.verify(ids[prompt : prompt + drafted], state)
    draft.commit(0)
    stepped = [model.decode(token, state) for token in ids[prompt:].tolist()]
    return torch.cat((read, draft.logits)), torch.stack(stepped)


def launches_by_layer(*, folder: str, ids: Tensor) -> dict[str, list[str]]:
    """Read some ids and decode a token; return what each kind of layer launches on the device.

    `Launches` says how they are named.
    """
    model = loaded_beside(ids, folder)
    found: dict[str, list[str]] = {}

    def counted(name: str) -> Callable[..., Tensor]:
        run: Callable[..., Tensor] = getattr(DecoderLayer, name)

        def counting(layer: DecoderLayer, *args: Any) -> Tensor:
            with Launches() as launches:
                x = run(layer, *args)
            found[f"{type(layer.mixer).__name__} {name}"] = launches.names
            return x

        return counting

    with pytest.MonkeyPatch.context() as patch:
        for name in ("prefill", "decode"):
            patch.setattr(DecoderLayer, name, counted(name))
        state = model.new_state()
        model.prefill(ids, state)
        model.decode(5, state)
    return found


def formats_of(*, folder: str, ids: Tensor) -> dict[str, list[tuple[torch.dtype, int]]]:
    """Load a model; return the format and the rows of each part of its layers' projections."""
    model = loaded_beside(ids, folder)
    found = {}
    for kind, layer in zip(model.config.layer_types, model._layers, strict=True):
        assert isinstance(layer.mlp, SparseMoe)
        named = {
            f"{kind} in_proj": layer.mixer.in_proj,
            f"{kind} out_proj": layer.mixer.out_proj,
            "mlp in_proj": layer.mlp.in_proj,
            "mlp shared_down": layer.mlp.shared_down,
        }
        for name, weight in named.items():
            parts = weight.parts if isinstance(weight, Stacked) else (weight,)
            stored = [part.values if isinstance(part, Fp8Matrices) else part for part in parts]
            found[name] = [(part.dtype, len(part)) for part in stored]
    return found


def read_and_step_offloaded(
    *, folder: str, ids: Tensor, prompt: int, slots: int, missing_on_cpu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read a prompt, verify and decode the rest, experts lying beside the model and in host memory.

    Returns:
        Logits of the prompt [prompt, V] and of the rest [2 · (T - prompt), V], for either in turn.
    """

    def device(count: int, like: Experts) -> ExpertDevice:
        if ids.is_cuda:
            return CudaDevice(count, like, ids.device)
        return SimulatedDevice(count, like, link=1e9)

    offload = Offload(slots, device, missing_on_cpu=missing_on_cpu)
    there = load_model(Path(folder), device=str(ids.device), offload=offload)
    there.reserve(STATES_BYTES)
    found: list[Tensor] = []
    for model in (loaded_beside(ids, folder), there):
        state = model.new_state()
        found.append(model.prefill(ids[:prompt], state, all_logits=True))
        draft = model.verify(ids[prompt:], state)
        draft.commit(0)
        stepped = [model.decode(token, state).clone() for token in ids[prompt:].tolist()]
        found.append(torch.cat((draft.logits, torch.stack(stepped))))
    return found[0], found[1], found[2], found[3]


def read_in_passes(
    *,
    folder: str,
    ids: Tensor,
    cuts: tuple[int, ...],
    together: bool,
    keys: KvCacheDtype = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Read blocks that end at `cuts`, in one pass with checkpoints inside, or in one for each.

    Returns:
        The last logits [V], and all that a cache would keep of each block.
    """
    model = loaded_beside(ids, folder, kept=keys)
    state = model.new_state()
    blocks = tuple(pairwise((0, *cuts)))
    kept: dict[str, Tensor] = {}
    todo = [Pass(blocks, cuts[:-1])] if together else [Pass((block,), ()) for block in blocks]
    for part in todo:
        logits = model.prefill(ids[part.start : part.end], state, part)
        for start, end in part.blocks:
            kept |= named(end, state.kv_of(start, end), state.recurrent_part(end))
    model.memory.when_copied()()
    check_integrity(model, state)
    return logits[-1], kept


def resume(
    *,
    folder: str,
    ids: Tensor,
    cuts: tuple[int, ...],
    behind: tuple[int, ...],
    keys: KvCacheDtype,
    resident: bool,
) -> Tensor:
    """Read blocks; go on from what was kept of them, with other ids `behind`, once for each cut.

    Kept parts are still on the device, or come back from the host: those of another model are.

    Returns:
        For each cut the logits behind the other ids [len(cuts), V].
    """
    model = loaded_beside(ids, folder, kept=keys)
    state = model.new_state()
    blocks: list[KvBlock] = []
    checkpoints: list[tuple[DeltaNetState, ...]] = []
    for start, end in pairwise((0, *cuts)):
        model.prefill(ids[start:end], state)
        blocks.append(state.kv_of(start, end))
        checkpoints.append(state.recurrent_part())
    if not resident:
        model.memory.when_copied()()
        model = loaded_beside(ids, folder, kept=keys)
    logits = []
    for count, end in enumerate(cuts, 1):
        resumed = model.new_state()
        resumed.put_together(blocks[:count], checkpoints[count - 1], end)
        logits.append(model.prefill(behind, resumed)[-1])
        del resumed
    if resident:
        check_integrity(model, state)
    return torch.stack(logits)


def from_nothing(
    *, folder: str, ids: Tensor, cuts: tuple[int, ...], behind: tuple[int, ...], keys: KvCacheDtype
) -> Tensor:
    """What `resume` returns, each text read from its beginning."""
    model = loaded_beside(ids, folder, kept=keys)
    logits = []
    for count in range(1, len(cuts) + 1):
        state = model.new_state()
        for start, end in pairwise((0, *cuts[:count])):
            model.prefill(ids[start:end], state)
        logits.append(model.prefill(behind, state)[-1])
    return torch.stack(logits)


def branch(*, folder: str, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decode two branches of a text in turns; return their logits, and the first one's alone."""
    model = loaded_beside(ids, folder)
    one = model.new_state()
    model.prefill(ids, one)
    other = one.fork()
    turns: list[Tensor] = []
    for number in range(3):
        turns += model.decode(5 + number, one), model.decode(9 + number, other)
    alone = model.new_state()
    model.prefill(ids, alone)
    steps = torch.stack([model.decode(5 + number, alone) for number in range(3)])
    check_integrity(model, one, other, alone)
    return torch.stack(turns[::2]), torch.stack(turns[1::2]), steps


def verify_in_turns(*, folder: str, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Verify drafts behind two branches of a text in turns, and take some of their tokens in.

    Between a draft and its commit the other branch takes the seat, once for a draft of its own.

    Returns:
        Logits of the drafts and of a token behind them; the same decoded one by one.
    """
    model = loaded_beside(ids, folder, dtype)
    one = model.new_state()
    model.prefill(ids, one)
    other, alone = one.fork(), one.fork()
    draft, taken = [3, 1, 4, 1, 5], 3
    verified = model.verify(draft, one)
    behind = model.decode(9, other)  # sits down
    verified.commit(taken)
    again = model.verify(draft[:2], one)
    in_turn = model.verify(draft[2:], other)
    again.commit(2)
    in_turn.commit(0)
    got = [
        *verified.logits,
        behind,
        *again.logits,
        *in_turn.logits,
        model.decode(7, one),
        model.decode(8, other),
    ]
    other_alone = alone.fork()
    want = [model.decode(token, alone) for token in draft[:taken]]
    rest = alone.fork()
    want += [model.decode(token, rest) for token in draft[taken:]]
    want.append(model.decode(9, other_alone))
    want += [model.decode(token, alone) for token in draft[:2]]
    rest = other_alone.fork()
    want += [model.decode(token, rest) for token in draft[2:]]
    want += [model.decode(7, alone), model.decode(8, other_alone)]
    check_integrity(model, one, other, alone, other_alone, rest)
    return torch.stack(got), torch.stack(want)


def decode_without_graphs(*, folder: str, ids: Tensor, memory_lacks: bool) -> tuple[Tensor, bool]:
    """Decode some tokens where no graph can be captured; whether graphs are still tried.

    Of the next sequence, that is: of one that is under way they are not.
    """
    model = loaded_beside(ids, folder)
    state = model.new_state()
    model.prefill(ids[:4], state)
    decoder = model._decoder
    assert decoder is not None
    decoder.uses_graphs = True
    given_back: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "CUDAGraph", _no_memory if memory_lacks else _cannot_capture)
        patch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
        logits = torch.stack([model.decode(token, state) for token in ids[4:].tolist()])
    assert given_back == [True]  # once: what the failed capture held
    return logits, decoder.uses_graphs


def decode_where_a_capture_breaks(
    *, folder: str, ids: Tensor, memory_lacks: bool
) -> tuple[Tensor, bool]:
    """Decode some tokens, the first in a capture that CUDA cannot end; whether graphs are tried.

    On a GPU what breaks it is waiting for the GPU in its middle; on the CPU what torch does is
    simulated. Afterwards memory must be given back as ever.
    """
    model = loaded_beside(ids, folder)
    state = model.new_state()
    model.prefill(ids[:4], state)
    decoder = model._decoder
    assert decoder is not None
    decoder.uses_graphs = True
    run = Seat.run

    def breaking(seat: Seat, *how: Any) -> tuple[Tensor, ...]:
        results = run(seat, *how)
        if torch.cuda.is_current_stream_capturing():
            with suppress(RuntimeError):
                torch.cuda.synchronize()
            _no_memory() if memory_lacks else _cannot_capture()
        return results

    with pytest.MonkeyPatch.context() as patch:
        captures = None if ids.is_cuda else SimulatedCaptures(patch)
        patch.setattr(Seat, "run", breaking)
        logits = torch.stack([model.decode(token, state) for token in ids[4:].tolist()])
        model.give_back()  # raises where torch takes a capture for under way
        assert captures is None or captures.pools == {}
    return logits, decoder.uses_graphs


def _cannot_capture() -> None:
    raise torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")


def _no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")


def answer_short_of_memory(*, folder: str, ids: Tensor, layer: int) -> tuple[str, str, list[str]]:
    """Answer a prompt as the engine does, undisturbed, and where a step lacks memory.

    Args:
        folder: holds the model.
        ids: the prompt.
        layer: the number among decoded layers, those of steps before included, that is refused it.

    Returns:
        Both answers, and what the second one gave back.
    """
    model = loaded_beside(ids, folder)
    tokenizer = Tokenizer(Path(folder), VOCAB_SIZE)
    sampling = SamplingParams(temperature=0.7, seed=3)
    request = request_of(ids.tolist(), max_tokens=5, sampling=sampling)
    decode, count, given_back = DecoderLayer.decode, itertools.count(), list[str]()

    def answer() -> str:
        cache = StateCache(model.config, Grid(tokenizer), 1 << 20)
        with torch.inference_mode():
            text, finished = answer_of(Loaded(model, tokenizer, cache).generate, request)
        assert finished.completion_tokens == 5
        return text

    def refused(*args: Any) -> Tensor:
        if next(count) == layer:
            _no_memory()
        return decode(*args)

    decoder, memory = model._decoder, model.memory
    assert decoder is not None
    assert isinstance(memory, DeviceMemory)
    decoder.uses_graphs = False  # a step is layer by layer, on a GPU too
    want = answer()
    graph: Any = object()
    decoder._graphs[Kind(0, 0)] = graph, ()  # of no length
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecoderLayer, "decode", refused)
        drop = memory.drop_resident

        def noted() -> None:
            given_back.append("resident")
            drop()

        patch.setattr(memory, "drop_resident", noted)
        got = answer()
    if not decoder._graphs:
        given_back.append("graphs")
    check_integrity(model)
    return got, want, given_back


def follow_edits(*, folder: str, ids: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Read a layout, an edited one and the first again, with a completion behind each.

    The layouts are refreshed as the engine does; a job is dropped in the middle between them.

    Returns:
        The logits in front of each completion's first token; the same from a fresh engine for each;
        and how many tokens of each layout were known.
    """
    tokenizer = Tokenizer(Path(folder), VOCAB_SIZE)
    file = tokenizer.control_id(FILE_SEP)
    first, second, edited = range(20, 50), range(50, 70), range(60, 75)
    texts = [[file, *first, file, *other] for other in (second, edited, second)]
    model, grid = loaded_beside(ids, folder), Grid(tokenizer)
    cache = StateCache(model.config, grid, 1 << 28)
    got, known = [], []
    for text in texts:
        dropped = model.prefill_steps(text, model.new_state())
        next(dropped)
        dropped.close()
        reading = cache.read(text, [len(first) + 1, len(text)], for_logits=False)
        known.append(reading.position)
        read(model, reading, text)
        got.append(answer(model, cache, [*text, file, 7, 8]))
    cache.check_integrity()
    want = []
    for text in texts:
        fresh = StateCache(model.config, grid, 1 << 28)
        want.append(answer(loaded_beside(ids, folder), fresh, [*text, file, 7, 8]))
    del reading
    check_integrity(model)
    return torch.stack(got), torch.stack(want), known


def go_on_from_disk(
    *, folder: str, contexts: str, ids: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Read two files and leave; another engine brings them back from disk and completes.

    Returns:
        Logits behind a completion's own text from disk and from a fresh engine [V]; all that was
        kept of the files, and all that came back.
    """
    tokenizer = Tokenizer(Path(folder), VOCAB_SIZE)
    file = tokenizer.control_id(FILE_SEP)
    first = [file, *range(20, 50)]
    text, tail = [*first, file, *range(50, 90)], [file, 7, 8]

    def engine() -> Loaded:
        return new_session(loaded_beside(ids, folder), tokenizer, Path(contexts))

    before, fresh = engine(), engine()
    want = logits_behind(fresh, text, tail)
    assert refresh(before, text, [len(first)]).computed == len(text)
    leave(before)
    after = engine()
    refreshed = refresh(after, text, ())
    assert (refreshed.restored, refreshed.computed) == (len(text), 0)
    got = logits_behind(after, text, tail)
    for session in (fresh, after):
        leave(session)
        check_integrity(session.model)
    kept, back = (parts_of(session.cache.stretches(text)) for session in (before, after))
    return got[-1], want[-1], kept, back


def parts_of(stretches: Sequence[Stretch]) -> dict[str, Tensor]:
    """All that a cache holds of a text, by name."""
    parts: dict[str, Tensor] = {}
    for number, stretch in enumerate(stretches):
        for at, (_, kv) in enumerate(stretch.blocks):
            parts |= named(f"{number}, block {at}", kv, stretch.checkpoint)
    return parts


def answer(model: Model, cache: StateCache, prompt: list[int]) -> Tensor:
    """The logits behind a prompt."""
    return read(model, cache.read(prompt), prompt)


def read(model: Model, reading: Reading, text: list[int]) -> Tensor:
    """Read what is not known of a text; return the last logits."""
    state = reading.start(model)
    logits = torch.empty(0)
    for part in reading.passes(model.pass_limits):
        logits = model.prefill(text[part.start : part.end], state, part)[-1]
        reading.took(part, state)
    return logits


def named(place: int | str, kv: KvBlock, checkpoint: Sequence[DeltaNetState]) -> dict[str, Tensor]:
    """The parts of a cache at a place of a text, by name."""
    parts = {f"{place} keys {slot}": keys for slot, keys in enumerate(kv.keys)}
    parts |= {f"{place} values {slot}": values for slot, values in enumerate(kv.values)}
    for slot, layer in enumerate(checkpoint):
        parts[f"{place} convolution {slot}"] = layer.convolution
        parts[f"{place} recurrent {slot}"] = layer.recurrent
    return parts


def check_integrity(model: Model, *states: State) -> None:
    """Let the device's memory look over its books; these are all states there are."""
    assert isinstance(model.memory, DeviceMemory)
    tables = [state._kv for state in states]
    model.memory.check_integrity([table for table in tables if isinstance(table, PageTable)])
