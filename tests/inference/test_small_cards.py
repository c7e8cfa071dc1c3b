"""A model whose experts lie in host memory: what it answers, and what becomes of lacking memory."""

import gc
import logging
import weakref
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from qcn_inference import device as devices
from qcn_inference.checkpoint import load_model, weight_bytes
from qcn_inference.config import load_config
from qcn_inference.errors import DeviceMemoryError
from qcn_inference.layers import DecoderLayer, SparseMoe
from qcn_inference.model import Model
from qcn_inference.offload.device import Experts
from qcn_inference.offload.layers import Offload
from qcn_inference.planning import footprint, onto_gpu
from qcn_inference.planning.footprint import Footprint, as_loaded
from qcn_inference.planning.machine import Gpu, Machine
from qcn_inference.planning.onto_gpu import footprint_of, load_beside_host, load_onto_gpu
from qcn_inference.planning.placing import placed
from qcn_inference.planning.plan import CHECKPOINTS, Plan, Refusal, plan
from qcn_kernels.groupwise import concatenate, quantise
from qcn_kernels.moe import Matrices
from random_checkpoints import (
    draw_config,
    draw_mtp_head,
    draw_qwen3_5,
    draw_tensors,
    random_checkpoint,
    write_checkpoint,
)
from simulated_device import SimulatedDevice
from torch import Tensor

CPU = torch.device("cpu")
EXPERTS = 3 * 17
NO_CPU_PLAN = 2 << 20  # bytes of host memory: room for the experts, not for all that a CPU needs
IDS = list(range(5, 60))
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "max_position_embeddings": 128,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "mlp_only_layers": [1],
    "num_experts": 17,
    "num_experts_per_tok": 3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("small"), 11, **SHAPE)


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside gigabytes for the work, an eighth less would leave nothing for a model so small."""
    monkeypatch.setattr(footprint, "working_bytes", lambda _: 0)
    monkeypatch.setattr(footprint, "LOST_BYTES", 0)
    monkeypatch.setattr(footprint, "MOST_TOKENS", 64)


def with_slots(folder: Path, slots: int, *, link: float) -> Machine:
    """A machine whose GPU has room for so many experts, and the least context there may be."""
    config = load_config(folder)
    foot = Footprint(config, as_loaded(config, 32))
    caches = config.max_position_embeddings * foot.kv_bytes + CHECKPOINTS * foot.checkpoint_bytes
    free = foot.resident_bytes + caches + slots * foot.expert_bytes
    return Machine(2**40, 1e9, 1e15, Gpu("simulated", free, 1e15, 1e18, link))


def simulated(slots: int, like: Experts, device: torch.device) -> SimulatedDevice:
    torch.empty(0)  # an allocation, as `CudaDevice`'s
    return SimulatedDevice(slots, like, link=1e9)


def answers(model: Model) -> Tensor:
    """Logits of a prompt, of a draft behind it, and of some tokens [T, vocab]."""
    state = model.new_state()
    read = model.prefill(IDS, state, all_logits=True)
    draft = model.verify([1, 2], state)
    draft.commit(0)
    stepped = [model.decode(token, state) for token in (1, 2, 3, 4)]
    return torch.cat((read, draft.logits, torch.stack(stepped)))


@pytest.mark.parametrize("missing_on_cpu", [True, False])
def test_a_model_answers_as_if_its_experts_lay_on_the_device(
    folder: Path, missing_on_cpu: bool
) -> None:
    machine = with_slots(folder, 40, link=1e6 if missing_on_cpu else 1e12)
    model = load_beside_host(folder, machine, CPU, slots=simulated)
    torch.testing.assert_close(answers(model), answers(load_model(folder)), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def with_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = draw_config(11) | SHAPE
    tensors = draw_tensors(config, 11, deviation=0.05) | draw_mtp_head(config, 12, deviation=0.05)
    return write_checkpoint(tmp_path_factory.mktemp("with a head"), config, tensors)


def guesses(model: Model) -> tuple[int, ...]:
    """What the head drafts behind a prompt that it has seen."""
    drafter = model.new_drafter()
    assert drafter is not None
    hidden = to_the_end(model.hidden_steps(IDS[:-1], model.new_state(), all_tokens=True))
    drafter.see(hidden[-16:], IDS[-16:])
    return drafter.propose(4)


@pytest.mark.parametrize("alike", [True, False])
def test_the_head_drafts_as_if_all_experts_lay_on_the_device(
    with_head: Path, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own lie with the others in host memory, or on the device where they are stored so that
    they cannot share slots."""
    foot = footprint_of(with_head)
    head = foot.head
    assert head is not None
    assert head.alike
    if not alike:  # and weigh nothing, or with room for them all of the model would fit
        head = replace(head, alike=False, expert_bytes=0)
    foot = replace(foot, head=head)
    monkeypatch.setattr(onto_gpu, "footprint_of", lambda *_: foot)
    monkeypatch.setattr(Plan, "head_pays", True)
    machine = with_slots(with_head, 40, link=1e12)
    assert machine.gpu is not None
    free = machine.gpu.free_bytes + head.core_bytes + foot.head_cache_bytes
    machine = replace(machine, gpu=replace(machine.gpu, free_bytes=free))
    there = load_beside_host(with_head, machine, CPU, slots=simulated)
    whole = load_model(with_head, mtp=True)
    assert there.mtp is not None
    assert isinstance(there.mtp.layer.mlp, SparseMoe)
    assert (there.mtp.layer.mlp.elsewhere is not None) is alike
    assert guesses(there) == guesses(whole)
    torch.testing.assert_close(answers(there), answers(whole), rtol=1e-4, atol=1e-4)
    assert guesses(there) == guesses(whole)  # after its experts have come and gone


@pytest.mark.parametrize("pays", [True, False])
def test_a_head_is_left_where_it_lies_if_it_has_no_room_or_does_not_pay(
    with_head: Path, pays: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(Plan, "head_pays", pays)
    slots = 2 * 17 if pays else 40
    model = load_beside_host(
        with_head, with_slots(with_head, slots, link=1e12), CPU, slots=simulated
    )
    assert model.mtp is None
    assert f"the head for drafts: {'no room' if pays else 'not worth it'}" in caplog.text


def test_a_dense_model_that_fits_without_its_head_is_loaded_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = draw_qwen3_5(7, dense=True)
    tensors = draw_tensors(config, 7, deviation=0.05) | draw_mtp_head(config, 8, deviation=0.05)
    folder = write_checkpoint(tmp_path, config, tensors)
    room = weight_bytes(folder) - 1

    def require(_: torch.device, weights: int, __: int) -> None:
        if weights > room:
            raise DeviceMemoryError("too little")

    monkeypatch.setattr(devices, "require_room", require)
    assert load_onto_gpu(folder, CPU).mtp is None
    room += 1
    assert load_onto_gpu(folder, CPU).mtp is not None
    room = weight_bytes(folder, head=False) - 1
    with pytest.raises(DeviceMemoryError, match="too little"):
        load_onto_gpu(folder, CPU)


@pytest.mark.parametrize("missing_on_cpu", [True, False])
def test_layers_of_two_formats_have_slots_of_their_own(
    missing_on_cpu: bool, tmp_path: Path
) -> None:
    """As in a GGUF, which keeps some layers' matrices in more bits than others'."""
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64}
    folder = random_checkpoint(tmp_path, 11, **SHAPE | sizes)
    whole, there, made = load_model(folder), load_model(folder), list[int]()

    def in_4_bits(layer: DecoderLayer) -> DecoderLayer:
        def quantised(stack: Matrices) -> Matrices:
            assert isinstance(stack, Tensor)
            return concatenate([quantise(one, torch.float32) for one in stack], dim=0)

        assert isinstance(layer.mlp, SparseMoe)
        gate_up, down = quantised(layer.mlp.gate_up), quantised(layer.mlp.down)
        return replace(layer, mlp=replace(layer.mlp, gate_up=gate_up, down=down))

    def device(slots: int, like: Experts) -> SimulatedDevice:
        made.append(slots)
        return SimulatedDevice(slots, like, link=1e9)

    layers = list(whole._layers)
    layers[0] = in_4_bits(layers[0])
    whole._layers = layers
    there._offload = Offload(45, device, missing_on_cpu)
    there._layers = there._offload.applied_to(layers)
    torch.testing.assert_close(answers(there), answers(whole), rtol=1e-4, atol=1e-4)
    assert made == [17, 34]  # at least a window of one layer, and two


@pytest.mark.gpu
@pytest.mark.parametrize("missing_on_cpu", [True, False])
def test_on_a_gpu_too_small_for_all_its_experts_it_answers_as_on_a_large_one(
    folder: Path, missing_on_cpu: bool
) -> None:
    """The plan is for a device of a few megabytes; copies, streams and events are real."""
    device = torch.device("cuda", 0)
    machine = with_slots(folder, 40, link=1e6 if missing_on_cpu else 1e12)
    there = load_beside_host(folder, machine, device)
    whole = load_model(folder, device="cuda:0")
    for model in (there, whole):
        model.reserve(64 << 20)
        model.warm_up()
    assert there._decoder is not None
    assert bool(there._decoder._graphs) is not missing_on_cpu
    for _ in range(2):  # prompts and tokens take turns
        torch.testing.assert_close(answers(there), answers(whole), rtol=1e-3, atol=1e-3)


def test_two_prompts_read_in_turns_do_not_take_each_others_experts(folder: Path) -> None:
    """A completion's prompt goes between the layers of a context's."""
    model = load_beside_host(folder, with_slots(folder, 40, link=1e12), CPU, slots=simulated)
    alone = load_model(folder)
    want = alone.prefill(IDS, alone.new_state())
    for layers_before in range(5):
        steps = model.prefill_steps(IDS, model.new_state())
        for _ in range(layers_before):
            next(steps)
        between = model.prefill(IDS[:30], model.new_state())
        torch.testing.assert_close(
            between, alone.prefill(IDS[:30], alone.new_state()), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(to_the_end(steps), want, rtol=1e-4, atol=1e-4)


def to_the_end(steps: Generator[None, None, Tensor]) -> Tensor:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            logits: Tensor = end.value
            return logits


class Allocator:
    """Counts allocations; one of them, or all from one on, are refused."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.fails_at = self.fails_from = -1
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self._empty = torch.empty
        monkeypatch.setattr(torch, "empty", self)

    def __call__(self, *shape: Any, **options: Any) -> Tensor:
        number, self.count = self.count, self.count + 1
        if number == self.fails_at or 0 <= self.fails_from <= number:
            raise torch.OutOfMemoryError("simulated")
        tensor = self._empty(*shape, **options)
        self.alive.add(tensor)
        return tensor


def test_whichever_allocation_fails_a_smaller_plan_takes_its_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From everything on the device to some experts in slots there."""
    want = answers(load_model(folder))
    machine = with_slots(folder, EXPERTS, link=1e12)
    made: list[int] = []

    def counted(slots: int, like: Experts, device: torch.device) -> SimulatedDevice:
        made.append(slots)
        return simulated(slots, like, device)

    with monkeypatch.context() as patched:
        allocator = Allocator(patched)
        load_beside_host(folder, machine, CPU, slots=counted)
        attempts = allocator.count
    assert attempts > 30
    assert not made
    for number in range(attempts):
        with monkeypatch.context() as patched:
            allocator = Allocator(patched)
            allocator.fails_at = number
            model = load_beside_host(folder, machine, CPU, slots=counted)
        assert 2 * 17 <= made.pop() < EXPERTS
        torch.testing.assert_close(answers(model), want, rtol=1e-4, atol=1e-4)


def test_a_gpu_that_another_program_fills_while_a_model_is_loaded_gets_some_experts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it seemed to fit; then experts lie in host memory, not everything on the CPU."""
    machine = with_slots(folder, 40, link=1e12)
    tried: list[bool] = []

    def full_at_first(*args: Any, **how: Any) -> Model:
        tried.append(how.get("offload") is not None)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return load_model(*args, **how)

    monkeypatch.setattr(onto_gpu, "load_model", full_at_first)
    monkeypatch.setattr(onto_gpu, "measure", lambda _: machine)
    monkeypatch.setattr(onto_gpu.load_beside_host, "__kwdefaults__", {"slots": simulated})
    model = load_onto_gpu(folder, CPU)
    assert tried == [False, True]
    torch.testing.assert_close(answers(model), answers(load_model(folder)), rtol=1e-4, atol=1e-4)


def test_a_gpu_that_is_filled_when_the_weights_are_loaded_gets_some_experts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is memory for states: what was loaded is given up first."""
    loaded: list[weakref.ref[Model]] = []

    def ready(model: Model) -> None:
        loaded.append(weakref.ref(model))
        if len(loaded) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        assert loaded[0]() is None

    monkeypatch.setattr(onto_gpu, "measure", lambda _: with_slots(folder, 40, link=1e12))
    monkeypatch.setattr(
        onto_gpu, "load_beside_host", partial(onto_gpu.load_beside_host, slots=simulated)
    )
    model = load_onto_gpu(folder, CPU, ready=ready)
    assert [one() for one in loaded] == [None, model]
    torch.testing.assert_close(answers(model), answers(load_model(folder)), rtol=1e-4, atol=1e-4)


def test_where_no_memory_is_given_it_is_refused_and_nothing_is_held(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slots are the last that is taken before anything large is read."""
    machine = replace(with_slots(folder, 40, link=1e12), free_bytes=NO_CPU_PLAN)
    with monkeypatch.context() as patched:
        allocator = Allocator(patched)
        load_beside_host(folder, machine, CPU, slots=simulated)
        attempts = allocator.count
    held: weakref.WeakSet[Tensor] = weakref.WeakSet()
    for number in range(attempts):
        with monkeypatch.context() as patched:
            allocator = Allocator(patched)
            allocator.alive, allocator.fails_from = held, number
            with pytest.raises(DeviceMemoryError) as refused:
                load_beside_host(folder, machine, CPU, slots=simulated)
            message = str(refused.value)
            del refused
        assert "may be used here" in message
        assert message.endswith("simulated")
    gc.collect()
    assert not held


def test_an_error_that_no_smaller_plan_mends_ends_the_search(folder: Path) -> None:
    config = load_config(folder)
    found = plan(Footprint(config, as_loaded(config, 32)), with_slots(folder, 40, link=1e9))
    assert isinstance(found, Plan)

    def broken(_: Plan) -> Model:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        placed(found, broken)


def test_a_refusal_is_passed_on_with_its_remedy(folder: Path) -> None:
    config = load_config(folder)
    foot = Footprint(config, as_loaded(config, 32))
    with pytest.raises(DeviceMemoryError, match=r"too little\. Buy more\."):
        placed(Refusal(foot, "too little", "Buy more"), lambda _: None)


def test_of_two_gpus_the_one_that_is_not_wanted_has_nothing_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned memory takes some of the current GPU, and the machine is measured with it."""
    second, happened = torch.device("cuda", 1), []

    def full(*_: object) -> None:
        raise DeviceMemoryError("the weights take 9 MiB")

    def measured(device: torch.device) -> Machine:
        happened.append(("measured", device))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(devices, "require_room", full)
    monkeypatch.setattr(devices, "make_current", lambda on: happened.append(("current", on)))
    monkeypatch.setattr(onto_gpu, "measure", measured)
    with pytest.raises(torch.OutOfMemoryError):
        load_onto_gpu(folder, second)
    assert happened == [("current", second), ("measured", second)]
