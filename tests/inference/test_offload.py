"""Experts in host memory: the same results, within the slots, copies in order and overlapped."""

import itertools
import math
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import qcn_inference
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from qcn_inference.config import load_config
from qcn_inference.device_memory import CHECKPOINTS_SHARE
from qcn_inference.offload.device import Experts
from qcn_inference.offload.experts import OffloadedExperts
from qcn_inference.offload.slots import ExpertSlots
from qcn_inference.pages import PAGE
from qcn_inference.planning.footprint import Footprint, WeightFormat
from qcn_inference.planning.machine import Gpu, Machine
from qcn_inference.planning.plan import Plan, plan
from qcn_kernels.expert_slots import SlotTables
from qcn_kernels.moe import SharedExpert, add_experts, experts_step, route
from sampling import examples
from simulated_device import Copied, SimulatedDevice
from torch import Tensor

HIDDEN, INTERMEDIATE, EXPERTS, LAYERS, TOP_K = 16, 8, 8, 4, 2
ONE = 4 * 3 * HIDDEN * INTERMEDIATE  # bytes of an expert, in fp32


def layers() -> list[Experts]:
    """Of weights that keep what passes near 1, as a model's do: the bound is absolute."""
    return [
        Experts(
            torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN) / math.sqrt(HIDDEN),
            torch.randn(EXPERTS, HIDDEN, INTERMEDIATE) / math.sqrt(INTERMEDIATE),
        )
        for _ in range(LAYERS)
    ]


def offloaded(
    host: list[Experts],
    slots: int = 2 * EXPERTS,
    *,
    missing_on_cpu: bool = False,
    aside: int = 0,
) -> tuple[OffloadedExperts, SimulatedDevice]:
    device = SimulatedDevice(slots, host[0], link=ONE)  # an expert a second
    return OffloadedExperts(host, device, missing_on_cpu=missing_on_cpu, aside=aside), device


def chosen_for(x: Tensor) -> tuple[Tensor, Tensor]:
    return route(torch.randn(*x.shape[:-1], EXPERTS), top_k=TOP_K, normalise=True)


def step_everywhere(experts_of_all: OffloadedExperts, host: list[Experts]) -> None:
    """One token through all layers; the results are those of whole layers."""
    for layer, own in enumerate(host):
        x = torch.randn(HIDDEN)
        weights, chosen = chosen_for(x)
        if experts_of_all.computes_missing:
            got = experts_of_all.step(layer, x, weights=weights, chosen=chosen)
        else:
            experts_of_all.begin_tokens()
            got = experts_step(x, weights=weights, **experts_of_all.placed(layer, chosen))
        whole = experts_step(x, weights=weights, chosen=chosen, gate_up=own.gate_up, down=own.down)
        torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-5)


def prefill_layer(
    experts_of_all: OffloadedExperts,
    layer: int,
    own: Experts,
    x: Tensor,
    chosen: Tensor | None = None,
) -> None:
    """A block through one layer: what is added to the residual stream is a whole layer's."""
    weights, drawn = chosen_for(x)
    chosen = drawn if chosen is None else chosen
    shared = SharedExpert(torch.randn(len(x), 1), torch.randn(len(x), 6), torch.randn(HIDDEN, 3))
    got, whole = torch.ones(len(x), HIDDEN), torch.ones(len(x), HIDDEN)
    routed = {"weights": weights, "chosen": chosen}
    experts_of_all.prefill(layer, got, x, **routed, shared=shared)
    add_experts(whole, x, **routed, gate_up=own.gate_up, down=own.down, shared=shared)
    torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-5)


def prefill_everywhere(experts_of_all: OffloadedExperts, host: list[Experts], tokens: int) -> None:
    for layer, own in enumerate(host):
        prefill_layer(experts_of_all, layer, own, torch.randn(tokens, HIDDEN))


@pytest.mark.long
@examples(sample=40, full=600)
@given(
    slots=st.integers(2 * EXPERTS, LAYERS * EXPERTS + 3),
    missing_on_cpu=st.booleans(),
    runs=st.lists(st.sampled_from([0, 1, 3, 40]), min_size=1, max_size=8),
    seconds=st.sampled_from([0.0, 0.5, 20.0]),
    seed=st.integers(0, 2**31),
)
def test_any_run_of_prompts_and_tokens_gives_what_whole_layers_give(
    slots: int, missing_on_cpu: bool, runs: list[int], seconds: float, seed: int
) -> None:
    """0 decodes a token, other numbers are those of a block's. The device checks the order."""
    torch.manual_seed(seed)
    host = layers()
    on_device, device = offloaded(host, slots, missing_on_cpu=missing_on_cpu)
    device.compute_seconds = seconds
    for tokens in runs:
        if tokens:
            prefill_everywhere(on_device, host, tokens)
        else:
            step_everywhere(on_device, host)


@pytest.mark.long
@examples(sample=30, full=600)
@given(
    slots=st.integers(2 * EXPERTS, LAYERS * EXPERTS),
    layers_before=st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=4),
    tokens=st.sampled_from([1, 3, 16]),
    seed=st.integers(0, 2**31),
)
def test_a_head_that_drafts_takes_its_experts_from_the_same_slots(
    slots: int, layers_before: list[int], tokens: int, seed: int
) -> None:
    """It reads a few tokens in the middle of a prompt that it interrupts, or between tokens; no
    pass copies its layer, which is the last."""
    torch.manual_seed(seed)
    host = layers()
    on_device, device = offloaded(host, slots, aside=1)
    for before in layers_before:
        x = torch.randn(40, HIDDEN)
        for layer in range(LAYERS - 1):
            if layer == before:
                prefill_layer(on_device, LAYERS - 1, host[-1], torch.randn(tokens, HIDDEN))
            prefill_layer(on_device, layer, host[layer], x)
        step_everywhere(on_device, host[:-1])
        prefill_layer(on_device, LAYERS - 1, host[-1], torch.randn(tokens, HIDDEN))
    alone, device = offloaded(host, slots, aside=1)
    for layer in range(LAYERS - 1):
        prefill_layer(alone, layer, host[layer], torch.randn(200, HIDDEN))
    assert device.copied_bytes == (LAYERS - 1) * EXPERTS * ONE


def test_a_prompt_that_is_interrupted_by_a_token_goes_on() -> None:
    host = layers()
    on_device, _ = offloaded(host)
    x = torch.randn(40, HIDDEN)
    for layer in range(LAYERS):
        prefill_layer(on_device, layer, host[layer], x)
        step_everywhere(on_device, host)


def test_what_fits_is_copied_once() -> None:
    host = layers()
    on_device, device = offloaded(host, LAYERS * EXPERTS)
    for _ in range(60):
        step_everywhere(on_device, host)
    assert device.copied_bytes == LAYERS * EXPERTS * ONE


def test_in_a_prompt_the_next_layer_is_copied_while_one_is_computed() -> None:
    """All but the first layer's copies hide behind what is computed, where that takes longer."""
    host = layers()
    on_device, device = offloaded(host)
    device.compute_seconds = EXPERTS + 1.0  # copying a layer takes EXPERTS
    prefill_everywhere(on_device, host, 200)
    assert device.copied_bytes == LAYERS * EXPERTS * ONE
    assert device.waited == pytest.approx(EXPERTS)
    assert device.now == pytest.approx(EXPERTS + LAYERS * (EXPERTS + 1))


def test_where_copying_takes_longer_a_prompt_takes_as_long_as_its_copies() -> None:
    host = layers()
    on_device, device = offloaded(host)
    device.compute_seconds = 1.0
    prefill_everywhere(on_device, host, 200)
    # Two windows: a copy begins when the layer before the last is done with its window.
    assert device.now == pytest.approx(LAYERS * EXPERTS + 1)


@pytest.mark.parametrize("layers_before", [0, 1, 3])
def test_of_a_verifying_step_the_chosen_experts_alone_are_copied(layers_before: int) -> None:
    """Its tokens choose three, which it copies in the middle of a prompt too; that then goes on."""
    host = layers()
    on_device, device = offloaded(host)
    prompt = torch.randn(40, HIDDEN)
    for layer in range(layers_before):
        prefill_layer(on_device, layer, host[layer], prompt)
    before = device.copied_bytes
    for layer in range(LAYERS):
        chosen = torch.tensor([[0, 3], [3, 6]]).repeat(8, 1)
        prefill_layer(on_device, layer, host[layer], torch.randn(16, HIDDEN), chosen)
    assert device.copied_bytes - before == 3 * LAYERS * ONE
    for layer in range(layers_before, LAYERS):
        prefill_layer(on_device, layer, host[layer], prompt)


def test_experts_outside_the_windows_are_not_copied_again() -> None:
    host = layers()
    on_device, device = offloaded(host, LAYERS * EXPERTS)
    for _ in range(80):
        step_everywhere(on_device, host)
    before = device.copied_bytes
    assert before == LAYERS * EXPERTS * ONE
    prefill_everywhere(on_device, host, 200)
    assert (device.copied_bytes - before) // ONE == 2 * EXPERTS  # those whose slots are windows


def test_a_prompt_takes_as_long_as_the_plan_says() -> None:
    """Where the link is what limits it, and all experts are needed."""
    nano = load_config(Path(qcn_inference.__file__).parent / "data" / "qcn-nano")
    shape = replace(nano, layer_types=nano.layer_types[:LAYERS], num_experts=EXPERTS)
    foot = Footprint(shape, WeightFormat("fp32", 32, 32))
    link = 1e6
    pages = (8192 + PAGE) * foot.kv_bytes
    caches = max(4 * foot.checkpoint_bytes + 8192 * foot.kv_bytes, pages / (1 - CHECKPOINTS_SHARE))
    free = foot.working_bytes + foot.resident_bytes + math.ceil(caches)
    gpu = Gpu("simulated", free + 20 * foot.expert_bytes, 1e15, 1e18, link)
    found = plan(foot, Machine(2**40, 1.0, 1e15, gpu))
    assert isinstance(found, Plan)
    assert (found.placement, found.slots) == ("gpu and host", 20)
    host = layers()
    on_device, device = offloaded(host, found.slots)
    for _ in range(60):  # until all slots are in use
        step_everywhere(on_device, host)
    before = device.copied_bytes
    prefill_everywhere(on_device, host, 1000)
    copied = (device.copied_bytes - before) // ONE
    seconds = found.prefill_seconds(1000)
    assert seconds == pytest.approx(copied * foot.expert_bytes / link, rel=1e-6)


def test_what_the_cpu_computes_is_not_waited_for() -> None:
    """An expert is brought for the next time, but no token waits for it the first time."""
    host = layers()
    on_device, device = offloaded(host, missing_on_cpu=True)
    step_everywhere(on_device, host)
    assert device.waited == 0
    assert device.copied_bytes == LAYERS * ONE


def test_the_cpu_begins_before_the_device_has_computed_its_part() -> None:
    """Each takes its experts of the same token: neither waits for the other in between."""
    host = layers()
    on_device, device = offloaded(host, missing_on_cpu=True)
    weights = torch.full((TOP_K,), 0.5)
    on_device.step(0, torch.randn(HIDDEN), weights=weights, chosen=torch.tensor([0, 1]))
    device.compute_seconds = 5.0
    device.fetched_at.clear()
    before = device.now
    # One was brought then, the other is missing still.
    on_device.step(0, torch.randn(HIDDEN), weights=weights, chosen=torch.tensor([0, 1]))
    assert device.now >= before + 5
    assert device.fetched_at
    assert set(device.fetched_at) == {before}


@pytest.mark.parametrize("missing_on_cpu", [True, False])
def test_whichever_copy_is_refused_what_is_taken_again_is_what_whole_layers_give(
    missing_on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To begin one takes a little memory, which may lack. No slot passes for that of an expert that
    never came, and none is written while it is read: the device sees to that."""
    copy, refused = SimulatedDevice.copy, 0

    def counted(device: SimulatedDevice, *args: Any) -> Copied:
        if next(begun) == refused:
            raise torch.OutOfMemoryError("simulated")
        return copy(device, *args)

    monkeypatch.setattr(SimulatedDevice, "copy", counted)
    while True:
        begun, host = itertools.count(), layers()
        on_device, device = offloaded(host, missing_on_cpu=missing_on_cpu)
        device.compute_seconds = 20.0
        for tokens in (40, 0, 3, 0, 40):  # 0 decodes one
            read = partial(prefill_everywhere, tokens=tokens) if tokens else step_everywhere
            with suppress(torch.OutOfMemoryError):
                read(on_device, host)
                continue
            read(on_device, host)
        if next(begun) <= refused:
            break
        refused += 1
    assert refused > 10


def test_a_device_without_room_for_two_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="15 slots, fewer than the 16"):
        offloaded(layers(), 2 * EXPERTS - 1)


class Slots(RuleBasedStateMachine):
    """Against a list of experts in the order of their last use, those of one time as a set."""

    COUNT = 6

    def __init__(self) -> None:
        super().__init__()
        self.slots = ExpertSlots(SlotTables.empty(10, self.COUNT, torch.device("cpu")), 5)
        self.order: list[set[tuple[int, int]]] = []  # those unused for longest first
        self.places: dict[tuple[int, int], int] = {}
        self.cleared = range(0)

    def used(self, now: set[tuple[int, int]]) -> None:
        left = (earlier - now for earlier in self.order)
        self.order = [*(some for some in left if some), *([now] if now else [])]

    def forget(self, gone: set[tuple[int, int]]) -> None:
        for expert in gone:
            del self.places[expert]
        left = (some - gone for some in self.order)
        self.order = [some for some in left if some]

    @rule(layer=st.integers(0, 1), wanted=st.sets(st.integers(0, 4)))
    def look(self, layer: int, wanted: set[int]) -> None:
        asked = sorted(wanted)
        found = self.slots.look(layer, asked)
        assert found == {e: self.places[layer, e] for e in asked if (layer, e) in self.places}
        self.used({(layer, expert) for expert in found})

    @rule(layer=st.integers(0, 1), wanted=st.sets(st.integers(0, 4), max_size=4))
    def place(self, layer: int, wanted: set[int]) -> None:
        asked = [(layer, expert) for expert in sorted(wanted)]
        there = self.COUNT - len(self.cleared)
        if len(asked) > there:
            return
        slots, taken = self.slots.place(layer, sorted(wanted))
        assert list(slots) == sorted(wanted)
        assert list(taken) == [expert for at, expert in asked if (at, expert) not in self.places]
        self.used({expert for expert in asked if expert in self.places})
        for expert, slot in taken.items():
            former = next((one for one, place in self.places.items() if place == slot), None)
            if former is not None:
                assert len(self.places) == there
                assert former in self.order[0]
                self.forget({former})
            self.places[layer, expert] = slot
        self.used(set(asked))
        assert {(layer, e): slot for e, slot in slots.items()}.items() <= self.places.items()

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.places:
            layer, expert = data.draw(st.sampled_from(sorted(self.places)))
            self.slots.drop(layer, [expert])
            self.forget({(layer, expert)})

    @rule(count=st.integers(1, 4))
    def clear(self, count: int) -> None:
        if not self.cleared:
            self.cleared = range(count)
            self.slots.clear(self.cleared)
            self.forget({expert for expert, slot in self.places.items() if slot in self.cleared})

    @rule()
    def give_back(self) -> None:
        self.slots.give_back(self.cleared)
        self.cleared = range(0)

    @invariant()
    def no_two_share_a_slot(self) -> None:
        assert len(set(self.places.values())) == len(self.places)
        assert self.slots.tables.slot_of.ge(0).sum() == len(self.places)
        assert not {*self.places.values()} & {*self.cleared}


Slots.TestCase.settings = examples(sample=40, full=500)
TestSlots = pytest.mark.long(Slots.TestCase)
