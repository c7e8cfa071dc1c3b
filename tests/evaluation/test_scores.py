"""The scores of `qcn eval` against values worked out by hand, and what their intervals promise."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from qcn_lsp.evaluation.scores import Estimate, is_exact, mean, share, similarity


def test_white_space_at_the_ends_does_not_count() -> None:
    assert is_exact("  price(item) ", "price(item)")
    assert not is_exact("price(item)", "price(items)")
    assert similarity(" a b", "a b") == 1


def test_similarity_is_twice_the_shared_characters_over_both_lengths() -> None:
    assert similarity("abcd", "abxy") == 2 * 2 / 8
    assert similarity("", "abc") == 0


def test_shares_have_the_intervals_of_wilson() -> None:
    """As published for 0 of 10 (0 to 27.75 %) and 5 of 10 (23.7 to 76.3 %)."""
    none, half = share(0, 10), share(5, 10)
    assert (none.value, none.low, none.high) == pytest.approx((0, 0, 0.2775), abs=1e-3)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-3)


@pytest.mark.long
@examples(sample=100, full=5000)
@given(data=st.data())
def test_a_share_lies_in_its_interval_and_that_within_0_and_1(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 1000))
    hits = data.draw(st.integers(0, count))
    found = share(hits, count)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_means_interval_is_two_standard_errors_wide_on_each_side() -> None:
    found = mean([0.4, 0.6, 0.4, 0.6], 0, 1)
    error = math.sqrt(0.04 / 3) / 2
    assert (found.value, found.low, found.high) == pytest.approx(
        (0.5, 0.5 - 1.96 * error, 0.5 + 1.96 * error)
    )


def test_a_means_interval_ends_where_values_do_and_of_one_value_holds_all() -> None:
    assert mean([0.0, 0.0, 0.9], 0, 1).low == 0
    assert mean([1.0, 1.0, 0.1], 0, 1).high == 1
    assert mean([0.3], -1, 1) == Estimate(0.3, -1, 1)


def test_nineteen_intervals_in_twenty_hold_the_truth() -> None:
    chooser = random.Random(1)
    truth, held = 0.3, 0
    for _ in range(1000):
        hits = sum(chooser.random() < truth for _ in range(60))
        found = share(hits, 60)
        held += found.low <= truth <= found.high
    assert 920 <= held <= 980
