"""Pinned memory: little of it is wasted, and it is ready before it is needed."""

import threading
import weakref
from queue import SimpleQueue

from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.host_copies import LARGEST, WASTE, Spare, pieces
from sampling import examples

MIB = 1 << 20


def taken(runs: list[int], nbytes: int) -> int:
    """Bytes that torch takes for runs of parts."""
    return sum(1 << (run * nbytes - 1).bit_length() for run in runs)


def test_a_checkpoint_and_a_block_of_the_80b_model_take_what_they_are() -> None:
    """36 layers of 2 MiB would be 128 MiB at once, keys of 512 tokens in 12 layers 8."""
    assert list(pieces(36, 2 * MIB)) == [4] * 9
    assert list(pieces(12, MIB // 2)) == [8, 4]
    assert list(pieces(12, 300 << 10)) == [12]  # of 4 MiB 3.5
    assert list(pieces(0, 4)) == []
    assert list(pieces(12, 0)) == [12]  # of no tokens: an empty state, which the disk cache asks


@examples(sample=300, full=5000)
@given(count=st.integers(1, 100), nbytes=st.integers(0, 16 * MIB))
def test_little_is_wasted_that_single_parts_do_not_waste(count: int, nbytes: int) -> None:
    runs = list(pieces(count, nbytes))
    assert sum(runs) == count
    assert min(runs) > 0
    assert all(run == 1 or run * nbytes <= LARGEST for run in runs)
    alone = count * taken([1], nbytes)
    assert taken(runs, nbytes) <= max(alone, count * nbytes / (1 - WASTE))


class Block:
    """Memory that was taken."""


def test_what_is_wanted_is_held_at_once_and_then_let_go() -> None:
    """So that an allocator that keeps what it gave has it all; a refusal ends nothing."""
    freed: SimpleQueue[int] = SimpleQueue()
    alive_when_asked: list[int] = []

    def take(nbytes: int) -> Block:
        alive_when_asked.append(len(alive))
        if nbytes < 0:
            raise RuntimeError("CUDA error: out of memory\nand more")
        block = Block()
        alive.add(block)
        weakref.finalize(block, freed.put, nbytes)
        return block

    alive: weakref.WeakSet[Block] = weakref.WeakSet()
    spare = Spare(take)
    spare.want([1, 2, 3])
    assert sorted(freed.get(timeout=60) for _ in range(3)) == [1, 2, 3]
    spare.want([4, -1])
    assert freed.get(timeout=60) == 4
    spare.want([5])
    assert freed.get(timeout=60) == 5
    assert alive_when_asked == [0, 1, 2, 0, 1, 0]


def test_nobody_takes_memory_for_copies_that_are_over() -> None:
    before = set(threading.enumerate())
    spare = Spare(bytearray)
    (thread,) = set(threading.enumerate()) - before
    spare.want([5])
    del spare
    thread.join(timeout=60)
    assert not thread.is_alive()
