"""How blocks are gathered into passes: all of them, in order, within bounds."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.passes import ONE_BLOCK, PassLimits, passes
from sampling import examples

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=30)


@pytest.mark.long
@examples(sample=40, full=400)
@given(
    sizes=SIZES,
    start=st.integers(0, 200),
    limits=st.builds(PassLimits, st.integers(1, 200), st.integers(1, 20_000), st.integers(0, 3)),
    data=st.data(),
)
def test_passes_are_all_blocks_in_order_within_bounds(
    sizes: list[int], start: int, limits: PassLimits, data: st.DataObject
) -> None:
    ends = [start]
    for size in sizes:
        ends.append(ends[-1] + size)
    blocks = list(pairwise(ends))
    keep = data.draw(st.sets(st.sampled_from(ends[1:])), label="keep")
    cut = list(passes(blocks, keep, limits))
    assert [block for part in cut for block in part.blocks] == blocks
    for part in cut:
        assert part.end - part.start == sum(part.parts)
        assert list(part.keep) == [end for _, end in part.blocks[:-1] if end in keep]
        assert part.kept == tuple(end - part.start for end in part.keep)
        assert len(part.keep) <= limits.checkpoints + 1
        if len(part.blocks) > 1:  # one block is read, however long
            assert sum(part.parts) <= limits.tokens
            assert sum((end - first) * end for first, end in part.blocks) <= limits.pairs


def test_on_the_cpu_a_pass_is_a_block() -> None:
    blocks = [(0, 5), (5, 9), (9, 10)]
    assert [part.blocks for part in passes(blocks, {5, 9}, ONE_BLOCK)] == [
        ((0, 5),),
        ((5, 9),),
        ((9, 10),),
    ]


def test_a_pass_grows_shorter_as_the_text_grows_longer() -> None:
    """What one layer of it takes stays about the same: something urgent waits no longer."""
    limits = PassLimits(tokens=1000, pairs=100_000, checkpoints=8)
    blocks = [(at, at + 10) for at in range(0, 5000, 10)]
    sizes = [part.end - part.start for part in passes(blocks, set(), limits)]
    assert sizes[0] == max(sizes)
    assert sizes[-2] < sizes[0] / 10
