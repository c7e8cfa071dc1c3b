"""What prompt lookup proposes: what followed, where the text at hand has stood before."""

import itertools
from array import array
from collections.abc import Generator, Sequence
from typing import Any

import pytest
from engine_support import finish
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference import lookup
from qcn_inference.lookup import GRAM, LONGEST_MATCH, MOST_CANDIDATES, BlockIndexes, Lookup
from sampling import examples

CONTROL = 9


def pieces_of(ids: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
    """Blocks of these sizes, and the rest as one."""
    cuts = [0, *itertools.takewhile(lambda at: at < len(ids), itertools.accumulate(sizes))]
    parts = itertools.pairwise([*dict.fromkeys(cuts), len(ids)])
    return [array("i", ids[start:end]).tobytes() for start, end in parts]


def lookup_in(
    ids: Sequence[int],
    sizes: Sequence[int] = (),
    indexes: BlockIndexes | None = None,
    **how: Any,
) -> Lookup:
    indexes = BlockIndexes() if indexes is None else indexes
    return finish(indexes.lookup(pieces_of(ids, sizes), **how))


def test_what_followed_the_longest_match_is_proposed() -> None:
    found = lookup_in([1, 2, 3, 4, 70, 8, 2, 3, 4, 80, 1, 2, 3, 4])
    assert (found.match, found.proposed(3)) == (4, [70, 8, 2])


def test_of_equal_matches_the_nearest_counts() -> None:
    found = lookup_in([2, 3, 4, 70, 2, 3, 4, 80, 2, 3, 4], sizes=[4])
    assert found.proposed(1) == [80]


def test_fewer_tokens_alike_than_a_gram_propose_nothing() -> None:
    found = lookup_in([1, 2, 3, 5, 2, 3])
    assert (found.match, found.proposed(4)) == (0, [])


def test_a_source_is_followed_while_the_text_goes_on_as_there() -> None:
    found = lookup_in([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3])
    for taken, token in enumerate([4, 5, 6], start=1):
        assert found.proposed(1) == [token]
        found.push(token)
        assert found.match == 3 + taken
    found.push(60)
    assert found.match == 0


def test_what_was_generated_is_a_source_too() -> None:
    found = lookup_in([1, 2])
    for token in (3, 4, 5, 1, 2, 3):
        found.push(token)
    assert found.proposed(2) == [4, 5]


def test_a_period_goes_on() -> None:
    assert lookup_in([5, 6, 7, 5, 6, 7]).proposed(7) == [5, 6, 7, 5, 6, 7, 5]


def test_a_draft_ends_in_front_of_a_control_token() -> None:
    ids = [1, 2, 3, 4, CONTROL, 5, 1, 2, 3]
    assert lookup_in(ids, control={CONTROL}).proposed(5) == [4]
    ids = [1, 2, 3, CONTROL, 5, 1, 2, 3]
    assert lookup_in(ids, control={CONTROL}).proposed(5) == []


def test_superseded_text_is_never_proposed() -> None:
    ids = [1, 2, 3, 70, 71, 4, 1, 2, 3, 80, 81, 5, 1, 2, 3]
    assert lookup_in(ids, superseded=[(9, 10)]).proposed(2) == [70, 71]
    assert lookup_in(ids, superseded=[(10, 11)]).proposed(4) == [80]
    assert lookup_in(ids, superseded=[(3, 4), (9, 12)]).proposed(2) == []
    followed = lookup_in([1, 2, 3, 70, 71, 1, 2, 3], superseded=[(4, 5)])
    followed.push(70)
    assert followed.proposed(1) == []


def test_only_new_blocks_are_indexed_and_each_is_a_step() -> None:
    indexes, ids = BlockIndexes(), list(range(40))

    def steps(made: Generator[None, None, Lookup]) -> int:
        return sum(1 for _ in made)

    assert steps(indexes.lookup(pieces_of(ids, [10, 10, 10]))) == 3  # and one behind the last
    assert len(indexes) == 4
    assert steps(indexes.lookup(pieces_of([*ids[:30], 7, 7, 7], [10, 10, 10]))) == 0
    assert len(indexes) == 5


def test_the_least_recently_used_blocks_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "MOST_BLOCKS", 3)
    indexes = BlockIndexes()
    for ids in ([1] * 5, [2] * 5, [3] * 5, [1] * 5, [4] * 5):
        lookup_in(ids, indexes=indexes)
    assert len(indexes) == 3
    assert sum(1 for _ in indexes.lookup([array("i", [n] * 5).tobytes() for n in (1, 2)])) == 0


IDS = st.lists(st.integers(1, 4), min_size=1, max_size=80)
SIZES = st.lists(st.integers(1, 30), max_size=4)
SPANS = st.lists(st.integers(0, 80), max_size=6, unique=True).map(
    lambda bounds: list(zip(sorted(bounds)[::2], sorted(bounds)[1::2], strict=False))
)


def agreement(ids: Sequence[int], place: int) -> int:
    """In how many tokens what is in front of a place agrees with the end."""
    pairs = zip(reversed(ids[:place]), reversed(ids), strict=False)
    return min(
        LONGEST_MATCH, len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    )


@pytest.mark.long
@examples(sample=300, full=5000)
@given(ids=IDS, sizes=SIZES, superseded=SPANS, pushed=st.lists(st.integers(1, 4), max_size=30))
def test_what_is_proposed_stands_behind_what_the_text_ends_in(
    ids: list[int], sizes: list[int], superseded: list[tuple[int, int]], pushed: list[int]
) -> None:
    """At every length of the text; and where nothing is proposed there was nothing to propose."""

    def usable(place: int) -> bool:
        return not any(start <= place < end for start, end in superseded)

    superseded = [span for span in superseded if span[1] <= len(ids)]
    text, found = list(ids), lookup_in(ids, sizes, superseded=superseded)
    borders = [0, *itertools.accumulate(sizes)]
    for token in [*pushed, None]:
        proposed = found.proposed(5)
        places = [place for place in range(GRAM, len(text)) if usable(place)]
        matches = [place for place in places if agreement(text, place) == found.match]
        assert not proposed or any(
            all(
                got == (text[at] if at < len(text) else proposed[at - len(text)])
                for at, got in enumerate(proposed, start=place)
            )
            and all(usable(place + ahead) for ahead in range(len(proposed)))
            for place in matches
        )
        if not proposed and len(text) >= GRAM:
            # Grams that a block's border cuts are not indexed.
            whole = [
                place
                for place in places
                if agreement(text, place) >= GRAM
                and not any(place - GRAM < border < place for border in (*borders, len(ids)))
            ]
            assert not whole
        if token is not None:
            found.push(token)
            text.append(token)


@pytest.mark.long
@examples(sample=200, full=3000)
@given(ids=IDS, superseded=SPANS)
def test_the_best_of_the_nearest_places_is_found(
    ids: list[int], superseded: list[tuple[int, int]]
) -> None:
    places = [
        place
        for place in reversed(range(GRAM, len(ids)))
        if agreement(ids, place) >= GRAM
        and not any(start <= place < end for start, end in superseded)
    ]
    best = max((agreement(ids, place) for place in places[:MOST_CANDIDATES]), default=0)
    assert lookup_in(ids, superseded=superseded).match == best


@pytest.mark.long
@examples(sample=100, full=1000)
@given(texts=st.lists(IDS, min_size=2, max_size=5), sizes=SIZES, pushed=IDS)
def test_nothing_depends_on_what_was_indexed_before(
    texts: list[list[int]], sizes: list[int], pushed: list[int]
) -> None:
    indexes = BlockIndexes()
    for text in texts:
        used = lookup_in(text, sizes, indexes)
    fresh = lookup_in(texts[-1], sizes)
    for token in pushed:
        assert (used.match, used.proposed(9)) == (fresh.match, fresh.proposed(9))
        used.push(token)
        fresh.push(token)
