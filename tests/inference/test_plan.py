"""Plans: figures of the published models, and what must hold on every machine."""

import re
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.config import load_config
from qcn_inference.device import working_bytes
from qcn_inference.device_memory import DeviceBudget
from qcn_inference.pages import PAGE
from qcn_inference.planning.cpu_experts import ExpertRates, measured
from qcn_inference.planning.footprint import FORMATS, FOUR_BITS, FP8_BITS, DraftHead, Footprint
from qcn_inference.planning.machine import Gpu, Machine, side_for
from qcn_inference.planning.plan import (
    CHECKPOINTS,
    HOST_SHARE,
    PINNED_SHARE,
    Plan,
    Refusal,
    plan,
    smaller,
)
from qcn_inference.planning.shapes import PUBLISHED
from sampling import examples
from torch.utils.flop_counter import FlopCounterMode

GB = 10**9
H200 = Gpu("H200", 140 * GB, 4.3e12, 790e12, 50e9)
RTX_4090 = Gpu("RTX 4090", 24 * GB, 0.95e12, 150e12, 24e9)


@pytest.fixture(scope="module")
def coder_next() -> dict[str, Footprint]:
    config = load_config(PUBLISHED / "Qwen3-Coder-Next")
    return {stored.name: Footprint(config, stored) for stored in FORMATS}


def machine(gpu: Gpu | None, free: int = 60 * GB) -> Machine:
    return Machine(free_bytes=free, bandwidth=50e9, rate=1e12, gpu=gpu)


def test_the_published_sizes_are_found_from_the_shape(coder_next: dict[str, Footprint]) -> None:
    """Sizes from the model's pages, and the counted bytes of `model-facts.md`."""
    assert coder_next["bf16"].all_bytes == pytest.approx(159e9, rel=0.01)
    assert coder_next["fp8"].all_bytes == pytest.approx(80.4e9, rel=0.01)
    fp8 = coder_next["fp8"]
    read = fp8.sparse_layers * fp8.config.num_experts_per_tok * fp8.expert_bytes
    assert fp8.core_bytes + read == pytest.approx(3.93e9, rel=0.001)  # by every token
    assert coder_next["fp8"].kv_bytes == 24_576
    assert coder_next["fp8"].checkpoint_bytes == pytest.approx(75.5e6 + 3.5e6, rel=0.01)


def test_on_a_large_gpu_everything_lies_on_it(coder_next: dict[str, Footprint]) -> None:
    """In FP8, as its publisher stores it."""
    found = plan(coder_next["fp8"], machine(H200))
    assert isinstance(found, Plan)
    assert (found.placement, found.context) == ("gpu", 262_144)
    # The ceilings of `model-facts.md`: 1,004, 755 and 409 tokens a second; 10.8 s for all tokens.
    rates = [1 / found.decode_seconds(position) for position in (8192, 65_536, 262_144)]
    assert rates == pytest.approx([1004, 755, 409], rel=0.05)
    assert found.prefill_seconds(262_144) == pytest.approx(10.8, rel=0.05)


def test_what_is_multiplied_as_fp8_is_reckoned_at_that_rate(
    coder_next: dict[str, Footprint],
) -> None:
    """Of a prompt's 8.5 PFLOP 1.6 are products with weights; attention and state stay in bf16."""
    fast = replace(H200, fp8_rate=2 * H200.rate)
    for name, multiplied in (("fp8", 1.6e15), ("int4", 0.0)):
        before, after = (plan(coder_next[name], machine(gpu)) for gpu in (H200, fast))
        assert isinstance(before, Plan)
        assert isinstance(after, Plan)
        saved = before.prefill_seconds(262_144) - after.prefill_seconds(262_144)
        assert saved == pytest.approx(multiplied / H200.rate / 2, rel=0.05)


@given(st.integers(0, 200 * GB))
def test_a_gpu_is_filled_by_what_it_multiplies_as_far_as_memory_allows(free: int) -> None:
    side = side_for(free)
    taken = 3 * 2 * side**2  # two matrices in bf16, and their product
    assert taken <= max(free // 4, 25_200_000)
    assert side == 8192 or 4 * taken > free // 4  # one twice as wide would take more


def test_on_a_24_gb_card_experts_lie_in_host_memory(coder_next: dict[str, Footprint]) -> None:
    found = plan(coder_next["int4"], machine(RTX_4090), longest=65_536)
    assert isinstance(found, Plan)
    assert (found.placement, found.context) == ("gpu and host", 65_536)
    assert 2 * 512 <= found.slots < coder_next["int4"].experts
    int4 = coder_next["int4"]
    caches = 65_536 * int4.kv_bytes + CHECKPOINTS * int4.checkpoint_bytes
    assert found.host_bytes == int4.experts * int4.expert_bytes + caches
    assert found.host_bytes <= PINNED_SHARE * 60 * GB
    # Copies of a context of 262,144 tokens have no place beside the experts.
    longer = plan(int4, machine(RTX_4090))
    assert isinstance(longer, Plan)
    assert longer.context == 131_072
    # Every prompt needs nearly every expert: no answer to a keystroke.
    assert found.ghost_text_seconds(16_384) > 0.3


def test_an_expert_that_is_missing_is_computed_where_that_is_sooner(
    coder_next: dict[str, Footprint],
) -> None:
    slow_link, fast_link = replace(RTX_4090, link=12e9), replace(RTX_4090, link=100e9)
    for gpu, expected in ((slow_link, True), (fast_link, False)):
        found = plan(coder_next["int4"], machine(gpu))
        assert isinstance(found, Plan)
        assert found.missing_on_cpu is expected


def test_a_cpu_that_is_slow_to_make_numbers_of_codes_computes_no_expert(
    coder_next: dict[str, Footprint],
) -> None:
    """However fast it reads them: what it takes to run them was measured."""
    slow_link = replace(RTX_4090, link=12e9)
    rates = ExpertRates(plain=1e12, fp8=1e12, groups=1e9)
    found = plan(coder_next["int4"], replace(machine(slow_link), expert_rates=rates))
    assert isinstance(found, Plan)
    assert not found.missing_on_cpu
    experts = coder_next["int4"].sparse_layers * coder_next["int4"].config.num_experts_per_tok
    over_link = coder_next["int4"].expert_bytes / 12e9 * experts * (1 - found.slot_share)
    assert found.decode_seconds(0) > over_link


@pytest.mark.parametrize("bits", [16, 32, FP8_BITS, FOUR_BITS, 4.25])
def test_the_rate_of_a_format_is_the_one_measured_of_its_kind(bits: float) -> None:
    kinds = {16: 1.0, 32: 1.0, FP8_BITS: 2.0}
    assert ExpertRates(plain=1, fp8=2, groups=3).of(bits) == kinds.get(bits, 3)


def test_what_experts_take_on_the_cpu_is_measured() -> None:
    """In each format a whole token's: two operations a weight, here in the place of seconds."""

    def counted(work: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as flops:
            work()
        return float(flops.get_total_flops())

    rates = asdict(measured(counted))
    assert rates == pytest.approx({"plain": 0.5, "fp8": 0.5, "groups": 0.5}, rel=1e-3)


def test_where_nothing_fits_it_says_what_is_missing(coder_next: dict[str, Footprint]) -> None:
    refused = plan(coder_next["bf16"], machine(RTX_4090))
    assert isinstance(refused, Refusal)
    assert "160." in refused.missing or "159." in refused.missing
    assert "24.0 GB are free" in refused.missing
    assert "qcn models convert" in refused.remedy
    refused = plan(coder_next["int4"], machine(None, 30 * GB))
    assert isinstance(refused, Refusal)
    assert "convert" not in refused.remedy
    # The card would do: it is the host that has no room for the experts.
    refused = plan(coder_next["int4"], machine(RTX_4090, 50 * GB))
    assert isinstance(refused, Refusal)
    assert "37.5 GB may be used here" in refused.missing
    assert re.search(
        r"at least 11\.\d GB of RTX 4090's memory.* 44\.\d GB of memory for its experts$",
        refused.missing,
    )
    dense = Footprint(load_config(PUBLISHED / "Qwen3.5-9B"), FORMATS[0])
    refused = plan(dense, machine(None, 10 * GB))
    assert isinstance(refused, Refusal)
    assert "convert" not in refused.remedy  # it has no experts to quantise


def test_a_head_for_drafts_is_loaded_where_there_is_room_and_it_pays(
    coder_next: dict[str, Footprint],
) -> None:
    """Experts that a draft needs come over the link where few have slots: then it does not pay."""

    def decided(name: str, gpu: Gpu | None) -> tuple[str, str]:
        foot = coder_next[name]
        foot = replace(foot, head=DraftHead.of_shape(foot.config, foot.format))
        found = plan(foot, machine(gpu, 250 * GB))
        assert isinstance(found, Plan)
        return found.placement, found.head

    assert decided("fp8", H200) == ("gpu", "loaded")
    full = plan(coder_next["fp8"], machine(H200))
    assert isinstance(full, Plan)
    just = replace(H200, free_bytes=H200.free_bytes - full.cache_bytes)
    assert decided("fp8", just) == ("gpu", "no room")
    assert decided("int4", RTX_4090) == ("gpu and host", "not worth it")
    fast = replace(RTX_4090, link=1e15, bandwidth=1e11)
    assert decided("int4", replace(fast, free_bytes=12 * GB))[1] == "no room"
    assert decided("fp8", None) == ("cpu", "loaded")


def test_what_torchs_allocator_loses_is_not_promised_as_context(
    coder_next: dict[str, Footprint],
) -> None:
    """As on an H200 of which 24,000 MiB were used: 133 MB were gone beside what is counted."""
    foot, free, longest = coder_next["int4"], 24_000 << 20, 66_560
    found = plan(foot, machine(replace(RTX_4090, free_bytes=free)), longest=longest)
    assert isinstance(found, Plan)
    assert (found.placement, found.context) == ("gpu and host", longest)
    weights = foot.resident_bytes + found.slots * foot.expert_bytes
    room = free - weights - working_bytes(foot.config) - 133_000_000
    budget = DeviceBudget.of(foot.config, torch.bfloat16, room)
    assert budget.pages * PAGE >= longest


sizes = st.integers(0, 400).map(lambda gb: gb * GB)
gpus = st.none() | st.builds(
    Gpu,
    name=st.just("a GPU"),
    free_bytes=sizes,
    bandwidth=st.floats(1e11, 8e12),
    rate=st.floats(1e13, 2e15),
    link=st.floats(4e9, 2e11),
)
machines = st.builds(
    Machine, free_bytes=sizes, bandwidth=st.floats(1e10, 5e11), rate=st.floats(1e11, 1e13), gpu=gpus
)
formats = st.sampled_from([stored.name for stored in FORMATS])
longests = st.sampled_from([1000, 8192, 65_536, 262_144])


@pytest.mark.long
@examples(sample=200, full=5000)
@given(on=machines, name=formats, longest=longests, with_head=st.booleans())
def test_no_plan_takes_more_memory_than_there_is(
    coder_next: dict[str, Footprint], on: Machine, name: str, longest: int, with_head: bool
) -> None:
    foot = coder_next[name]
    if with_head:
        foot = replace(foot, head=DraftHead.of_shape(foot.config, foot.format))
    found = plan(foot, on, longest=longest)
    if isinstance(found, Refusal):
        return
    assert (found.head == "none") is not with_head
    assert 0 < found.context <= longest
    assert found.host_bytes <= PINNED_SHARE * on.free_bytes
    if found.placement == "cpu":
        assert found.host_bytes <= HOST_SHARE * on.free_bytes
        assert found.host_bytes > found.footprint.all_bytes >= foot.all_bytes
        return
    assert on.gpu is not None
    on_gpu = foot.resident_bytes + found.slots * foot.expert_bytes + foot.working_bytes
    states = found.context * foot.kv_bytes + found.cache_bytes
    if found.head == "loaded":
        assert foot.head is not None
        on_gpu += foot.head.core_bytes + foot.head_cache_bytes
        in_slots = found.placement == "gpu and host" and foot.head.alike
        on_gpu += 0 if in_slots else foot.head.expert_bytes
        experts = foot.experts * foot.expert_bytes + foot.head.expert_bytes
        assert not in_slots or found.host_bytes >= experts
    assert on_gpu + states <= on.gpu.free_bytes
    budget = DeviceBudget.of(foot.config, torch.bfloat16, on.gpu.free_bytes - on_gpu)
    assert budget.pages * PAGE >= found.context
    assert found.slots * foot.expert_bytes + found.host_bytes >= foot.experts * foot.expert_bytes


@pytest.mark.long
@examples(sample=200, full=5000)
@given(on=machines, name=formats, longest=longests, more=sizes, position=st.integers(0, 262_144))
def test_more_memory_makes_no_plan_slower(
    coder_next: dict[str, Footprint],
    on: Machine,
    name: str,
    longest: int,
    more: int,
    position: int,
) -> None:
    """At the same length of context: a longer one that now fits takes slots from the experts."""
    foot = coder_next[name]
    gpu = None if on.gpu is None else replace(on.gpu, free_bytes=on.gpu.free_bytes + more)
    before = plan(foot, on, longest=longest)
    if isinstance(before, Refusal):
        return
    after = plan(foot, replace(on, gpu=gpu), longest=before.context)
    assert isinstance(after, Plan)
    if after.placement == before.placement:
        assert after.decode_seconds(position) <= before.decode_seconds(position)
        assert after.prefill_seconds(9000, position) <= before.prefill_seconds(9000, position)
    assert isinstance(plan(foot, replace(on, free_bytes=on.free_bytes + more)), Plan)


@pytest.mark.long
@examples(sample=100, full=2000)
@given(on=machines, name=formats)
def test_where_memory_runs_out_smaller_plans_end_with_a_refusal(
    coder_next: dict[str, Footprint], on: Machine, name: str
) -> None:
    found = plan(coder_next[name], on)
    for _ in range(400):
        if isinstance(found, Refusal):
            return
        following = smaller(found)
        if isinstance(following, Plan):
            assert following.context <= found.context
        found = following
    pytest.fail("plans went on and on")
