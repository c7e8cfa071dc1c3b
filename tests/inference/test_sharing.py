"""Two models on one GPU: what each may take of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.config import load_config
from qcn_inference.planning.footprint import FORMATS, DraftHead, Footprint, WeightFormat
from qcn_inference.planning.machine import Gpu, Machine
from qcn_inference.planning.plan import Plan, least_on_gpu, plan, wanted_on_gpu
from qcn_inference.planning.shapes import PUBLISHED, SHAPES
from qcn_inference.planning.sharing import USED_SHARE, share
from sampling import examples

GB = 10**9
HOST = 64 * GB
BF16, FP8, INT4 = FORMATS


def footprint(name: str, stored: WeightFormat) -> Footprint:
    return Footprint(load_config(PUBLISHED / name), stored)


def planned(foot: Footprint, nbytes: int) -> Plan:
    gpu = Gpu("a GPU", nbytes, 1e12, 1e14, 25e9)
    found = plan(foot, Machine(HOST, 50e9, 1e12, gpu))
    assert isinstance(found, Plan)
    return found


def test_on_a_24_gb_card_the_small_one_lies_there_and_the_large_one_has_slots() -> None:
    """Qwen3.5-9B in 4 bits a weight for ghost text, Coder-Next for chat."""
    small = footprint("Qwen3.5-9B", WeightFormat("int4", 4.63, 4.63))
    large = footprint("Qwen3-Coder-Next", INT4)
    of_small = share(small, large, gpu_bytes=24 << 30, host_bytes=HOST)
    of_large = share(large, small, gpu_bytes=24 << 30, host_bytes=HOST)
    assert planned(small, of_small).placement == "gpu"
    found = planned(large, of_large)
    assert found.placement == "gpu and host"
    assert found.slots >= 2 * 512


def test_on_a_large_gpu_both_have_what_they_want() -> None:
    small, large = footprint("Qwen3.5-9B", FP8), footprint("Qwen3-Coder-Next", FP8)
    for own, other in ((small, large), (large, small)):
        of_own = share(own, other, gpu_bytes=141 * GB, host_bytes=HOST)
        found = planned(own, of_own)
        assert (found.placement, found.context) == ("gpu", 262_144)


def test_of_two_that_have_no_room_together_the_smaller_has_all_that_it_wants() -> None:
    """What is kept for one that cannot use it would be lost."""
    small, large = footprint("Qwen3.5-9B", FP8), footprint("Qwen3-Coder-Next", BF16)
    assert least_on_gpu(large, HOST) > 24 * GB
    of_small = share(small, large, gpu_bytes=24 * GB, host_bytes=HOST)
    assert of_small == min(wanted_on_gpu(small), int(USED_SHARE * 24 * GB))


@st.composite
def footprints(draw: st.DrawFn) -> Footprint:
    config = load_config(draw(st.sampled_from(SHAPES)))
    stored = draw(st.sampled_from(FORMATS))
    head = DraftHead.of_shape(config, stored) if draw(st.booleans()) else None
    return Footprint(config, stored, head)


@pytest.mark.long
@examples(sample=200, full=5000)
@given(
    one=footprints(),
    other=footprints(),
    gpu_bytes=st.integers(1, 400).map(lambda gb: gb * GB),
    host_bytes=st.integers(1, 400).map(lambda gb: gb * GB),
)
def test_shares_fit_together_and_each_has_its_least_where_there_is_room(
    one: Footprint, other: Footprint, gpu_bytes: int, host_bytes: int
) -> None:
    """Each engine reckons for itself, and both come to the same."""
    memory = {"gpu_bytes": gpu_bytes, "host_bytes": host_bytes}
    shares = share(one, other, **memory), share(other, one, **memory)
    assert all(nbytes >= 0 for nbytes in shares)
    assert sum(shares) <= USED_SHARE * gpu_bytes
    least = [least_on_gpu(foot, host_bytes) for foot in (one, other)]
    alike = wanted_on_gpu(one) == wanted_on_gpu(other)
    if sum(least) <= USED_SHARE * gpu_bytes and not alike:
        assert all(nbytes >= each for nbytes, each in zip(shares, least, strict=True))


@pytest.mark.long
@examples(sample=200, full=5000)
@given(foot=footprints(), host_bytes=st.integers(1, 400).map(lambda gb: gb * GB))
def test_the_least_is_enough_for_a_plan_and_one_byte_less_is_not(
    foot: Footprint, host_bytes: int
) -> None:
    least = least_on_gpu(foot, host_bytes)
    gpu = Gpu("a GPU", least, 1e12, 1e14, 25e9)
    on = Machine(host_bytes, 50e9, 1e12, gpu)
    enough = plan(foot, on)
    assert isinstance(enough, Plan) or foot.experts  # whose host copies may have no room
    less = plan(foot, replace(on, gpu=replace(gpu, free_bytes=least - 1)))
    assert not isinstance(less, Plan) or less.placement == "cpu"
    if isinstance(enough, Plan) and not foot.experts:
        assert enough.placement == "gpu"
