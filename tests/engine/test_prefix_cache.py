"""Snapshots are used for exactly their tokens, handed out as copies, within their bytes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.generate import Loaded
from qcn_inference.prefix_cache import PrefixCache
from qcn_inference.state import State
from sampling import examples


def state_of(loaded: Loaded, ids: tuple[int, ...]) -> State:
    state = loaded.model.new_state()
    loaded.model.prefill(ids, state)
    return state


# Few different tokens, so that prompts share prefixes.
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


@pytest.mark.long
@examples(sample=50, full=400)
@given(stored=st.lists(prompts, max_size=6), asked=prompts)
def test_the_longest_snapshot_of_the_prompt_is_found(
    loaded: Loaded, stored: list[tuple[int, ...]], asked: tuple[int, ...]
) -> None:
    cache = PrefixCache(2**30)
    for ids in stored:
        cache.store(ids, state_of(loaded, ids))
        cache.check_integrity()
    usable = [ids for ids in stored if len(ids) < len(asked) and asked[: len(ids)] == ids]
    match = cache.find(asked)
    assert (match is None) == (not usable)
    if match is not None:
        assert match.tokens == max(map(len, usable))
        rest = loaded.model.prefill(asked[match.tokens :], match.state)
        whole = loaded.model.prefill(asked, loaded.model.new_state())
        torch.testing.assert_close(rest, whole, rtol=0, atol=1e-4)


def test_what_is_handed_out_is_a_copy(loaded: Loaded) -> None:
    cache = PrefixCache(2**30)
    cache.store((5, 6, 7), state_of(loaded, (5, 6, 7)))
    first = cache.find((5, 6, 7, 8))
    assert first is not None
    before = loaded.model.prefill((8,), first.state)
    second = cache.find((5, 6, 7, 8))
    assert second is not None
    assert second.state.position == 3
    torch.testing.assert_close(loaded.model.prefill((8,), second.state), before, rtol=0, atol=0)


def test_the_least_recently_used_goes_first(loaded: Loaded) -> None:
    state = state_of(loaded, (1, 2))
    cache = PrefixCache(state.fork().nbytes * 2)
    cache.store((1, 2), state)
    cache.store((2, 1), state_of(loaded, (2, 1)))
    assert cache.find((1, 2, 3)) is not None
    cache.store((2, 2), state_of(loaded, (2, 2)))
    cache.check_integrity()
    assert cache.find((2, 1, 3)) is None
    assert cache.find((1, 2, 3)) is not None
    assert cache.find((2, 2, 3)) is not None


def test_a_state_larger_than_the_budget_is_not_kept(loaded: Loaded) -> None:
    state = state_of(loaded, (1, 2))
    cache = PrefixCache(state.nbytes - 1)
    cache.store((1, 2), state)
    assert len(cache) == 0
    assert cache.nbytes == 0


def test_a_state_of_other_tokens_is_refused(loaded: Loaded) -> None:
    with pytest.raises(ValueError, match="position 2 is no snapshot of 3 tokens"):
        PrefixCache(2**30).store((1, 2, 3), state_of(loaded, (1, 2)))


def test_damage_is_noticed(loaded: Loaded) -> None:
    cache = PrefixCache(2**30)
    state = state_of(loaded, (1, 2))
    cache.store((1, 2), state)
    cache.nbytes += 1
    with pytest.raises(AssertionError, match="booked"):
        cache.check_integrity()
    cache.clear()
    cache.check_integrity()
    assert cache.find((1, 2, 3)) is None
