"""What is resumed goes on bit for bit; what is kept stays within its bytes."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.generate import Loaded
from qcn_inference.grid import BLOCK, TYPED_BLOCK, Grid, as_array
from qcn_inference.state import State
from qcn_inference.state_cache import StateCache
from qcn_inference.tokenizer import Tokenizer
from sampling import examples
from torch import Tensor


def read(loaded: Loaded, cache: StateCache, ids: Sequence[int], keep: Sequence[int]) -> Tensor:
    """Read a text through a cache; return its last logits."""
    reading = cache.read(ids, keep)
    state = reading.start(loaded.model)
    for part in reading.passes(loaded.model.pass_limits):
        logits = loaded.model.prefill(ids[part.start : part.end], state, part)
        reading.took(part, state)
    assert state.position == len(ids)
    cache.check_integrity()
    return logits


def new_cache(loaded: Loaded, max_bytes: int = 2**30) -> StateCache:
    return StateCache(loaded.model.config, Grid(loaded.tokenizer), max_bytes)


@pytest.mark.parametrize("copied", range(3))
def test_where_there_is_no_memory_for_a_copy_nothing_half_is_kept(
    loaded: Loaded, copied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a first block, a second, and of the checkpoint; what was kept before stays."""
    cache, ids = new_cache(loaded), [20] * (2 * BLOCK)
    before = [21] * BLOCK
    read(loaded, cache, before, [BLOCK])
    kept, copies = cache.nbytes, list[str]()

    def refused(name: str) -> None:
        copy = getattr(State, name)

        def copying(state: State, *where: int) -> Any:
            copies.append(name)
            if len(copies) > copied:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return copy(state, *where)

        monkeypatch.setattr(State, name, copying)

    refused("kv_of")
    refused("recurrent_part")
    with pytest.raises(torch.OutOfMemoryError):
        read(loaded, cache, ids, [2 * BLOCK])
    cache.check_integrity()
    assert cache.nbytes == kept
    monkeypatch.undo()
    read(loaded, cache, ids, [2 * BLOCK])
    assert cache.checkpoints_of(ids) == [2 * BLOCK]
    assert cache.checkpoints_of(before) == [BLOCK]


# --- The grid ----------------------------------------------------------------------------------

PARTS = ["<|repo_name|>", "<|file_sep|>", "<|im_start|>", "<|fim_prefix|>", "<|fim_suffix|>"]


@st.composite
def texts(draw: st.DrawFn, tokenizer: Tokenizer) -> list[int]:
    """Some parts, each a control token and tokens of few kinds, so that texts begin alike."""
    ids: list[int] = []
    for _ in range(draw(st.integers(1, 3))):
        opener = draw(st.sampled_from([None, *PARTS]))
        ids += [] if opener is None else [tokenizer.control_id(opener)]
        length = draw(st.sampled_from([0, 1, 3, 63, 64, 65, 130, 511, 520]))
        ids += [draw(st.integers(20, 22))] * length
    return ids or [20]


@pytest.mark.long
@examples(sample=60, full=1000)
@given(data=st.data())
def test_a_block_depends_on_nothing_in_front_of_its_part(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    grid = Grid(tokenizer)
    before, after = data.draw(texts(tokenizer)), data.draw(texts(tokenizer))
    part = [tokenizer.control_id("<|file_sep|>"), *after]
    alone = list(grid.blocks(part))
    behind = list(grid.blocks([*before, *part]))
    assert behind[: -len(alone)] == list(grid.blocks(before))
    shift = len(before)
    assert behind[-len(alone) :] == [(start + shift, end + shift) for start, end in alone]


def test_blocks_are_short_where_one_types(tokenizer: Tokenizer) -> None:
    control = tokenizer.control_id
    ids = [control("<|file_sep|>"), *[20] * 600, control("<|fim_prefix|>"), *[20] * 200]
    assert list(Grid(tokenizer).blocks(ids)) == [
        (0, BLOCK),
        (BLOCK, 601),
        (601, 601 + TYPED_BLOCK),
        (601 + TYPED_BLOCK, 802),
    ]


@pytest.mark.parametrize(
    ("first", "then", "sizes"),
    [
        # A path and a short text come in one block with what follows.
        (("fim_suffix", 40), ("fim_prefix", 100), [TYPED_BLOCK, 26]),
        # In front of a long text, what is typed behind it has blocks of its own.
        (("fim_suffix", 80), ("fim_prefix", 100), [93, 101]),
        # What is behind the text that one types in is read again in any case.
        (("fim_prefix", 80), ("fim_suffix", 100), [TYPED_BLOCK, 66]),
    ],
)
def test_how_both_sides_of_the_gap_are_cut(
    tokenizer: Tokenizer, first: tuple[str, int], then: tuple[str, int], sizes: list[int]
) -> None:
    ids = [tokenizer.control_id("<|file_sep|>"), *[20] * 11]
    for name, tokens in (first, then):
        ids += [tokenizer.control_id(f"<|{name}|>"), *[20] * tokens]
    assert [end - start for start, end in Grid(tokenizer).blocks(ids)] == sizes


@pytest.mark.long
@examples(sample=60, full=1000)
@given(data=st.data())
def test_what_is_behind_a_block_has_no_say_in_it(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(texts(tokenizer))
    blocks = list(Grid(tokenizer).blocks(ids))
    for number, (_, end) in enumerate(blocks):
        assert list(Grid(tokenizer).blocks(ids[:end])) == blocks[: number + 1]


# --- Exact -------------------------------------------------------------------------------------


@pytest.mark.long
@examples(sample=40, full=200)
@given(data=st.data())
def test_what_is_resumed_is_what_is_read_from_nothing(loaded: Loaded, data: st.DataObject) -> None:
    """Text after text through one small cache, which drops what it must: equal logits, bit for bit.

    Each text is an earlier one, cut somewhere and continued otherwise, as edits leave them.
    """
    cache = new_cache(loaded, data.draw(st.sampled_from([0, 60_000, 200_000, 2**30])))
    known: list[list[int]] = [[]]
    for _ in range(data.draw(st.integers(1, 4))):
        base = data.draw(st.sampled_from(known))
        ids = base[: data.draw(st.integers(0, len(base)))] + data.draw(texts(loaded.tokenizer))
        keep = data.draw(st.lists(st.integers(0, len(ids)), max_size=4))
        known.append(ids)
        got = read(loaded, cache, as_array(ids), keep)
        assert torch.equal(got, read(loaded, new_cache(loaded), ids, ()))


def test_the_deepest_checkpoint_is_resumed(loaded: Loaded) -> None:
    cache = new_cache(loaded)
    ids = [20] * (3 * BLOCK)
    read(loaded, cache, ids, [BLOCK, 2 * BLOCK + 7])
    assert cache.checkpoints_of(ids) == [BLOCK, 2 * BLOCK]
    assert cache.read(ids).position == 2 * BLOCK
    assert cache.read([*ids[: 2 * BLOCK], 21]).position == 2 * BLOCK
    assert cache.read([*ids[: 2 * BLOCK - 1], 21, 21]).position == BLOCK
    assert cache.read([21, *ids]).position == 0


def test_the_last_block_is_read_always_for_its_logits(loaded: Loaded) -> None:
    cache = new_cache(loaded)
    ids = [20] * (2 * BLOCK)
    read(loaded, cache, ids, [2 * BLOCK])
    assert cache.checkpoints_of(ids) == [2 * BLOCK]
    assert cache.read(ids).blocks == [(0, BLOCK), (BLOCK, 2 * BLOCK)]
    assert cache.read([*ids, 20]).blocks == [(2 * BLOCK, 2 * BLOCK + 1)]


def test_a_text_that_is_being_read_goes_on_when_its_beginning_is_dropped(loaded: Loaded) -> None:
    cache = new_cache(loaded)
    ids = [20] * (2 * BLOCK + 1)
    read(loaded, cache, ids, [BLOCK])
    reading = cache.read(ids, [2 * BLOCK])
    state = reading.start(loaded.model)
    cache.max_bytes = 0
    cache.store(as_array([21]), [(0, 1)], state_of(loaded, [21]))
    assert len(cache) == 0
    cache.max_bytes = 2**30
    for part in reading.passes(loaded.model.pass_limits):
        logits = loaded.model.prefill(ids[part.start : part.end], state, part)
        reading.took(part, state)
    assert torch.equal(logits, read(loaded, new_cache(loaded), ids, ()))
    assert cache.checkpoints_of(ids) == [2 * BLOCK]
    cache.check_integrity()


def state_of(loaded: Loaded, ids: list[int]) -> State:
    state = loaded.model.new_state()
    loaded.model.prefill(ids, state)
    return state


# --- Bounded -----------------------------------------------------------------------------------


def test_texts_that_begin_alike_share_what_they_have_in_common(loaded: Loaded) -> None:
    first, second = new_cache(loaded), new_cache(loaded)
    ids, other = [20] * (2 * BLOCK), [20] * BLOCK + [21] * BLOCK
    read(loaded, first, ids, [2 * BLOCK])
    alone = first.nbytes
    read(loaded, second, ids, [2 * BLOCK])
    read(loaded, second, other, [2 * BLOCK])
    assert second.nbytes < 2 * alone


def test_what_saves_least_for_its_bytes_goes_first(loaded: Loaded) -> None:
    """A checkpoint right behind another saves one short block, and takes as many bytes."""
    cache = new_cache(loaded)
    opener = loaded.tokenizer.control_id("<|file_sep|>")
    ids = [*[20] * BLOCK, opener, 20, opener, 20]
    read(loaded, cache, ids, [BLOCK, BLOCK + 2, BLOCK + 4])
    assert cache.checkpoints_of(ids) == [BLOCK, BLOCK + 2, BLOCK + 4]
    read(loaded, cache, [21] * BLOCK, [BLOCK])
    cache.max_bytes = cache.nbytes - 1
    read(loaded, cache, [22, opener], [1])
    assert cache.checkpoints_of([21] * BLOCK) == [BLOCK]
    assert BLOCK in cache.checkpoints_of(ids)
    assert len(cache) < 4


def test_what_is_never_used_again_goes_in_the_end(loaded: Loaded) -> None:
    cache = new_cache(loaded)
    read(loaded, cache, [20] * BLOCK, [BLOCK])
    cache.max_bytes = 2 * cache.nbytes
    for other in range(21, 40):
        ids = [other] * (BLOCK // 2)
        read(loaded, cache, [*ids, loaded.tokenizer.control_id("<|file_sep|>")], [len(ids)])
    assert cache.checkpoints_of([20] * BLOCK) == []
    assert len(cache) > 0


def test_a_text_larger_than_the_budget_is_not_kept(loaded: Loaded) -> None:
    cache = new_cache(loaded, 1000)
    read(loaded, cache, [20] * BLOCK, [BLOCK])
    assert (len(cache), cache.nbytes) == (0, 0)


# --- Forgotten ---------------------------------------------------------------------------------


def test_what_is_forgotten_is_gone_and_does_not_come_back_with_a_late_reader(
    loaded: Loaded,
) -> None:
    cache = new_cache(loaded)
    secret, other = [20] * (BLOCK + 9), [21] * (BLOCK + 9)
    read(loaded, cache, secret, [BLOCK])
    read(loaded, cache, other, [BLOCK])
    late = cache.read([*secret, 22], [BLOCK])
    state = late.start(loaded.model)
    cache.forget(secret)
    for part in late.passes(loaded.model.pass_limits):
        loaded.model.prefill(([*secret, 22])[part.start : part.end], state, part)
        late.took(part, state)
    assert cache.checkpoints_of(secret) == []
    assert cache.checkpoints_of(other) == [BLOCK]
    cache.check_integrity()


def test_what_is_forgotten_while_it_is_first_read_is_not_kept(loaded: Loaded) -> None:
    cache = new_cache(loaded)
    secret = [20] * (BLOCK + 9)
    late = cache.read(secret, [BLOCK])
    state = late.start(loaded.model)
    cache.forget(secret)
    for part in late.passes(loaded.model.pass_limits):
        loaded.model.prefill(secret[part.start : part.end], state, part)
        late.took(part, state)
    assert cache.checkpoints_of(secret) == []


def test_damage_is_noticed(loaded: Loaded) -> None:
    cache = new_cache(loaded)
    read(loaded, cache, [20] * (BLOCK + 1), [BLOCK])
    cache.nbytes += 1
    with pytest.raises(AssertionError, match="booked"):
        cache.check_integrity()
    cache.clear()
    cache.check_integrity()
    assert cache.checkpoints_of([20] * (BLOCK + 1)) == []
