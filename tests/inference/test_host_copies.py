"""Pinned memory, which torch gives out in powers of two, holds what is kept with little waste."""

from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.host_copies import WASTE, pieces
from sampling import examples

MIB = 1 << 20


def taken(runs: list[int], nbytes: int) -> int:
    """Bytes that torch takes for runs of parts."""
    return sum(1 << (run * nbytes - 1).bit_length() for run in runs)


def test_a_checkpoint_and_a_block_of_the_80b_model_take_what_they_are() -> None:
    """36 layers of 2 MiB would be 128 MiB at once, keys of 4,096 tokens in 12 layers 64."""
    assert list(pieces(36, 2 * MIB)) == [32, 4]
    assert list(pieces(12, 4 * MIB)) == [8, 4]
    assert list(pieces(12, 300 << 10)) == [12]  # of 4 MiB 3.5
    assert list(pieces(0, 4)) == []


@examples(sample=300, full=5000)
@given(count=st.integers(1, 100), nbytes=st.integers(1, 16 * MIB))
def test_little_is_wasted_that_single_parts_do_not_waste(count: int, nbytes: int) -> None:
    runs = list(pieces(count, nbytes))
    assert sum(runs) == count
    assert min(runs) > 0
    alone = count * taken([1], nbytes)
    assert taken(runs, nbytes) <= max(alone, count * nbytes / (1 - WASTE))
    assert len(runs) <= count.bit_length() or taken(runs, nbytes) <= alone
