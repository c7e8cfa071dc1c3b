"""Where chunks are cut, and behind which the state is kept."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qcn_kernels.gated_delta_rule import CHUNK_SIZE, chunk_grid
from sampling import examples


@given(parts=st.lists(st.integers(1, 300), min_size=1, max_size=6), data=st.data())
@examples(sample=50, full=2000)
def test_every_part_begins_a_chunk_and_checkpoints_stand_behind_chunks(
    parts: list[int], data: st.DataObject
) -> None:
    starts = chunk_grid(parts).starts.tolist()
    sizes = [end - start for start, end in pairwise(starts)]
    assert starts[0] == 0
    assert all(0 < size <= CHUNK_SIZE for size in sizes)
    part_ends = [sum(parts[: i + 1]) for i in range(len(parts))]
    assert set(part_ends) <= set(starts)
    short = [end for end, size in zip(starts[1:], sizes, strict=True) if size < CHUNK_SIZE]
    assert set(short) <= set(part_ends)
    kept = sorted(data.draw(st.sets(st.sampled_from(starts[1:]))))
    slots = chunk_grid(parts, checkpoints=kept).slots.tolist()
    assert [starts[1:][slots.index(slot)] for slot in range(len(kept))] == kept
    assert sum(slot >= 0 for slot in slots) == len(kept)


@pytest.mark.parametrize(
    ("parts", "checkpoints", "complaint"),
    [
        ([], [], "at least one token"),
        ([3, 0], [], "at least one token"),
        ([100], [65], "not the end of a chunk"),
        ([100], [0], "not the end of a chunk"),
        ([100], [100, 64], "must rise"),
        ([100], [64, 64], "must rise"),
    ],
)
def test_what_is_no_grid_is_refused(
    parts: list[int], checkpoints: list[int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        chunk_grid(parts, checkpoints=checkpoints)
