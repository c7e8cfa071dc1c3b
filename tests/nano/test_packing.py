"""Packing moves whole documents: none is cut, lost or doubled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qcn_nano.packing import best_fit
from sampling import examples


@pytest.mark.long
@examples(sample=40, full=2000)
@given(lengths=st.lists(st.integers(1, 64), max_size=60))
def test_every_document_lies_whole_in_one_sequence(lengths: list[int]) -> None:
    bins = best_fit(lengths, capacity=64)

    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in members) <= 64 for members in bins)


@pytest.mark.long
@examples(sample=40, full=2000)
@given(lengths=st.lists(st.integers(1, 64), max_size=60))
def test_no_two_sequences_could_have_been_one(lengths: list[int]) -> None:
    filled = sorted(sum(lengths[index] for index in members) for members in best_fit(lengths, 64))

    assert len(filled) < 2 or filled[0] + filled[1] > 64


def test_each_document_goes_where_the_least_room_is_left() -> None:
    # 7 and 6 open a sequence each; 4 fits both (rooms 3 and 4) only behind 6, 3 only behind 7.
    assert best_fit([3, 4, 6, 7], capacity=10) == [[3, 0], [2, 1]]


def test_a_document_longer_than_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="document 1 has 11 tokens, a sequence holds 10"):
        best_fit([3, 11], capacity=10)
