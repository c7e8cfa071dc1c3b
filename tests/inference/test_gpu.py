"""What only hardware shows, at the shapes of the real model: graphs, exactness, cancelling, copies.

The rest of what runs there is tested beside what is interpreted: `triton/`, `../kernels/triton`.
All of it: `python -m pytest -m gpu -n 0`, some minutes (`CONTRIBUTING.md`).
"""

import gc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from disk_support import leave, logits_behind, new_session, refresh
from engine_support import finish, write_tokenizer
from kernel_tolerances import MODEL_IN_ALL
from qcn_inference.checkpoint import load_model
from qcn_inference.device_memory import DeviceMemory
from qcn_inference.errors import DeviceMemoryError
from qcn_inference.generate import Loaded
from qcn_inference.grid import Grid
from qcn_inference.loading import Loader
from qcn_inference.model import Model
from qcn_inference.passes import Pass
from qcn_inference.planning.machine import measure
from qcn_inference.state import State
from qcn_inference.state_cache import SPACING, StateCache
from qcn_inference.step_cost import ROWS
from qcn_inference.tokenizer import FILE_SEP, Tokenizer
from random_checkpoints import draw_config, draw_tensors, random_checkpoint, write_checkpoint
from torch import Tensor
from whole_model import parts_of

pytestmark = pytest.mark.gpu

WIDE: dict[str, Any] = {  # Qwen3-Coder-Next's, with four layers and 32 experts
    "hidden_size": 2048,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "vocab_size": 2053,
    "max_position_embeddings": 65_536,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 32,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "mlp_only_layers": [],
    "attention_bias": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with torch.inference_mode():
        yield wide_model(tmp_path_factory.mktemp("wide"))


def wide_model(folder: Path) -> Model:
    config = draw_config(1) | WIDE
    tensors = draw_tensors(config, 1, deviation=0.02)
    stored = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    model = load_model(write_checkpoint(folder, config, stored), device="cuda")
    model.reserve(4 << 30)
    return model


def text_of(tokens: int) -> list[int]:
    ids: list[int] = torch.randint(0, WIDE["vocab_size"], (tokens,)).tolist()
    return ids


def read(model: Model, ids: list[int]) -> State:
    state = model.new_state()
    model.prefill(ids, state)
    return state


def test_a_model_is_loaded_when_all_its_weights_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that overlap read them before what was launched in front has ended."""
    load = Loader.load

    def load_and_be_slow(loader: Loader) -> None:
        load(loader)
        torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call] # cycles: some 50 ms

    monkeypatch.setattr(Loader, "load", load_and_be_slow)
    load_model(random_checkpoint(tmp_path, 3), device="cuda")
    assert torch.cuda.current_stream().query()


def test_a_graph_gives_what_single_launches_give(model: Model) -> None:
    ids = text_of(300)
    decoder = model._decoder
    assert decoder is not None
    graphed, launched = read(model, ids), read(model, ids)
    with_graph = [model.decode(token, graphed) for token in ids[:8]]
    assert decoder.uses_graphs
    assert decoder._graphs
    decoder.uses_graphs, graphs, decoder._graphs = False, decoder._graphs, {}
    without = [model.decode(token, launched) for token in ids[:8]]
    decoder.uses_graphs, decoder._graphs = True, graphs
    assert all(map(torch.equal, with_graph, without))


@pytest.mark.parametrize("rows", [2, 3, 8, 16])
def test_a_graph_of_drafts_gives_what_single_launches_give(model: Model, rows: int) -> None:
    """The draft's logits, and those of a token behind what was taken in."""
    ids = text_of(300)
    decoder = model._decoder
    assert decoder is not None
    found = []
    for uses_graphs in (True, False):
        decoder.uses_graphs, kept = uses_graphs, decoder._graphs
        if not uses_graphs:
            decoder._graphs = {}
        state = read(model, ids)
        for _ in range(2):
            drafted = model.verify(ids[:rows], state)
            drafted.commit(rows - 1)
            found += [drafted.logits, model.decode(5, state)[None]]
        decoder.uses_graphs, decoder._graphs = True, kept
    assert any(kind.rows == rows for kind in decoder._graphs)
    with_graphs, without = torch.cat(found[:4]), torch.cat(found[4:])
    assert torch.equal(with_graphs, without)


def test_drafts_are_as_near_to_a_prefill_as_steps_are(model: Model) -> None:
    """At the real shapes, nine texts. Either way a token's errors are in the state of the next.

    Of 15 texts on an H200 the median by place was 2e-2 to 4e-2 for drafts, 2e-2 to 7e-2 for steps:
    experts of random weights are chosen by a hair. A wrong token or state is off by 1.
    """
    errors = torch.stack([_off_a_prefill(model, text_of(108)) for _ in range(9)])
    drafts, steps = errors.unbind(1)
    assert drafts.median() < 1.5 * steps.median()
    assert (drafts.median(0).values < MODEL_IN_ALL).all()


def _off_a_prefill(model: Model, ids: list[int]) -> Tensor:
    """How far 8 drafts and a token behind them are off a prefill's logits, and steps: [2, 9]."""
    drafting = read(model, ids[:-8])
    stepping = drafting.fork()
    steps = torch.stack([model.decode(token, stepping) for token in [*ids[-8:], 5]])
    drafted = model.verify(ids[-8:], drafting)
    drafts = drafted.logits
    drafted.commit(8)
    drafts = torch.cat((drafts, model.decode(5, drafting)[None]))
    want = model.prefill([*ids, 5], model.new_state(), all_logits=True)[-9:]
    return (torch.stack((drafts, steps)) - want).square().mean(-1).sqrt() / want.std()


def test_what_steps_over_drafts_cost_is_measured_when_the_model_is_warmed_up(model: Model) -> None:
    model.warm_up()
    measured = [model.step_cost.measured[rows] for rows in ROWS]
    assert all(cost > 0 for cost in measured)
    assert model.step_cost.verifying(8, 0) == model.step_cost.measured[8]


def test_a_token_that_nobody_has_seen_can_be_decoded(model: Model) -> None:
    """The chosen token feeds the next step on the device; the host reads them all at the end."""
    ids = text_of(100)
    ahead, stepwise = read(model, ids), read(model, ids)
    token, seen = torch.tensor([5], device="cuda"), 5
    chosen, expected = [], []
    for _ in range(20):
        token = model.decode(token, ahead).argmax(keepdim=True)
        chosen.append(token)
        seen = int(model.decode(seen, stepwise).argmax())
        expected.append(seen)
    assert torch.cat(chosen).tolist() == expected


def test_a_long_text_is_the_same_in_passes_of_any_length_bit_for_bit(model: Model) -> None:
    """20 blocks, most of them files that end inside a page and a chunk, at once and one by one."""
    cuts = [0]
    while cuts[-1] < 7000:
        cuts.append(cuts[-1] + int(torch.randint(1, 513, ())))
    blocks, ids = tuple(pairwise(cuts)), text_of(cuts[-1])
    one_by_one, at_once = model.new_state(), model.new_state()
    for block in blocks:
        want = model.prefill(ids[slice(*block)], one_by_one, Pass((block,), ()))
    keep = (cuts[3], cuts[-2])
    got = model.prefill(ids, at_once, Pass(blocks, keep))
    assert torch.equal(got, want)
    for mine, theirs in zip(at_once.recurrent_part(), one_by_one.recurrent_part(), strict=True):
        torch.cuda.synchronize()
        assert torch.equal(mine.recurrent, theirs.recurrent)
        assert torch.equal(mine.convolution, theirs.convolution)


@pytest.mark.parametrize("resident", [True, False])
def test_what_is_resumed_goes_on_bit_for_bit(model: Model, resident: bool) -> None:
    """From pages that are still there, and from the host's pinned copies."""
    ids, behind = text_of(3000), text_of(200)
    state = model.new_state()
    blocks = []
    for start, end in pairwise((0, 700, 1212, 3000)):
        model.prefill(ids[start:end], state)
        blocks.append(state.kv_of(start, end))
    checkpoint = state.recurrent_part()
    want = model.prefill(behind, state)
    model.memory.when_copied()()
    assert blocks[0].keys[0].is_pinned()
    if not resident:
        model.give_back()
    resumed = model.new_state()
    resumed.put_together(blocks, checkpoint, 3000)
    assert torch.equal(model.prefill(behind, resumed), want)


def test_a_long_text_comes_back_from_disk_bit_for_bit(model: Model, tmp_path: Path) -> None:
    """Copied and written beside the work of the device: files that end anywhere in pages."""
    tokenizer = Tokenizer(write_tokenizer(tmp_path), WIDE["vocab_size"])
    text, tail = text_of(2 * SPACING), text_of(30)
    for start in (0, 700, 1301, SPACING + 65):
        text[start] = tokenizer.control_id(FILE_SEP)
    before = new_session(model, tokenizer, tmp_path / "contexts")
    assert refresh(before, text, [700]).computed == len(text)
    leave(before)
    model.give_back()  # what is still resident of it
    after = new_session(model, tokenizer, tmp_path / "contexts")
    refreshed = refresh(after, text, ())
    assert (refreshed.restored, refreshed.computed) == (len(text), 0)
    kept, back = (parts_of(session.cache.stretches(text)) for session in (before, after))
    assert kept.keys() == back.keys()
    assert all(torch.equal(part, back[name]) for name, part in kept.items())
    fresh = Loaded(model, tokenizer, StateCache(model.config, Grid(tokenizer), 1 << 30))
    assert torch.equal(logits_behind(after, text, tail), logits_behind(fresh, text, tail))
    leave(after)


def test_a_read_that_is_dropped_gives_its_pages_back(model: Model) -> None:
    memory = model.memory
    assert isinstance(memory, DeviceMemory)
    gc.collect()
    memory.drop_resident()  # what other tests left
    free = memory.pool.free
    steps = model.prefill_steps(text_of(2000), model.new_state())
    next(steps)
    next(steps)
    steps.close()
    del steps
    assert memory.pool.free == free
    assert model.decode(1, read(model, text_of(50))).isfinite().all()


def test_another_request_begins_between_two_layers_of_a_long_pass(model: Model) -> None:
    """And finds no more than two layers queued in front of it; both go on as if alone."""
    long, short = text_of(6000), text_of(80)
    want_long = model.prefill(long, model.new_state())
    want_short = model.prefill(short, model.new_state())
    steps = model.prefill_steps(long, model.new_state())
    for _ in range(3):
        next(steps)
    in_flight = [event for event in model._pace._layers if not event.query()]  # type: ignore[no-untyped-call]
    assert len(in_flight) <= 2
    assert torch.equal(model.prefill(short, model.new_state()), want_short)
    assert torch.equal(finish(steps), want_long)


def test_what_does_not_fit_is_refused_and_what_fits_goes_on(model: Model) -> None:
    def read_for_ever(states: list[State]) -> None:
        while True:
            states.append(read(model, [7] * 1024))

    with pytest.raises(DeviceMemoryError, match="room for"):
        read_for_ever([])
    assert model.prefill([7] * 1024, model.new_state()).isfinite().all()


def test_measuring_a_gpu_takes_nothing_of_it_for_good() -> None:
    """Buffers of gigabytes, without which its rates come out too small, are given back."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    gpu = measure().gpu
    assert gpu is not None
    assert torch.cuda.memory_reserved() <= before + 2**28  # workspaces of libraries stay
    assert (gpu.fp8_rate is not None) == (torch.cuda.get_device_capability() >= (8, 9))
