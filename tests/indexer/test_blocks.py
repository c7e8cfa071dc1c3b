"""Changed blocks: one meaning, and back to the last byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_reader import applied, blocks
from qcn_indexer.blocks import change_text
from sampling import examples

NUMBERS = "".join(f"line {number}\n" for number in range(20))


def test_a_changed_line_is_quoted_with_three_lines_on_each_side() -> None:
    change = change_text(NUMBERS, NUMBERS.replace("line 9\n", "line nine\n"))
    assert change == (
        "original:\nline 6\nline 7\nline 8\nline 9\nline 10\nline 11\nline 12\n"
        "updated:\nline 6\nline 7\nline 8\nline nine\nline 10\nline 11\nline 12\n"
    )


def test_an_original_that_stands_twice_grows_until_it_stands_once() -> None:
    same = "try:\n    work()\nexcept Error:\n    pass\n\n\n\n" * 3
    older = f"first = 1\n{same}last = 2\n"
    newer = f"first = 1\n{same}\nlast = 2\n".replace("work()\nexcept", "work(1)\nexcept", 1)
    change = change_text(older, newer)
    assert change is not None
    for original, _ in blocks(change):
        assert f"\n{older}\n".count("\n" + "\n".join(original) + "\n") == 1
    assert applied(change, older) == newer


def test_what_no_block_can_say_is_left_to_the_whole_file() -> None:
    assert change_text("same\n", "same\n") is None
    assert change_text("a\n", "b\n") is None, "the block would be the whole file"
    yaml = NUMBERS.replace("line 9\n", "original:\n")
    assert change_text(yaml, yaml.replace("line 8\n", "")) is None, "a line reads as a marker"


LINES = st.sampled_from(["a", "b", "", "a", "  a", "b\r", "original:", "c\x0b", "é"])
TEXT = st.lists(LINES, max_size=40).map("\n".join)


@pytest.mark.long
@examples(sample=500, full=4_000)
@given(older=TEXT, newer=TEXT, front=TEXT, end=TEXT)
def test_blocks_lead_from_the_older_text_to_the_newer(
    older: str, newer: str, front: str, end: str
) -> None:
    before, after = f"{front}\n1\n{older}\n2\n{end}", f"{front}\n1\n{newer}\n2\n{end}"
    change = change_text(before, after)
    if change is not None:
        assert applied(change, before) == after
