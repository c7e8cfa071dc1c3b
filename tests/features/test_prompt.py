"""The text around the cursor that a prompt is made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from qcn_lsp.features.prompt import (
    LINE_LIMIT,
    PREFIX_LIMIT,
    PREFIX_STEP,
    SUFFIX_LIMIT,
    around,
    unfit,
)
from qcn_lsp.positions import plain

FILE = "".join(f"line_{number:05} = {number}\n" for number in range(2_000))


def test_a_short_file_is_shown_whole() -> None:
    here = around("a = 1\nb = ", 10)
    assert (here.start, here.prefix, here.suffix) == (0, "a = 1\nb = ", "")


@pytest.mark.parametrize("cursor", [9_000, 20_003, len(FILE)])
def test_the_windows_are_cut_at_line_starts(cursor: int) -> None:
    here = around(FILE, cursor)
    assert FILE[here.start : cursor] == here.prefix
    assert FILE[here.start - 1] == "\n"
    assert PREFIX_LIMIT - PREFIX_STEP - 20 < len(here.prefix) <= PREFIX_LIMIT
    assert FILE[cursor:].startswith(here.suffix)
    assert len(here.suffix) <= SUFFIX_LIMIT
    assert here.suffix == "" or here.suffix.endswith("\n")


def test_typing_seldom_moves_the_start() -> None:
    """Each move costs the engine its prefix cache of the window: one for each step typed."""
    text, starts = FILE[:20_000], set()
    for typed in range(3 * PREFIX_STEP):
        starts.add(around(text + "x" * typed, len(text) + typed).start)
    assert len(starts) <= 4


@pytest.mark.long
@examples(sample=100, full=3000)
@given(
    text=st.lists(st.sampled_from(["x" * 700, "é🙂", "\n", "\r\n", "\r", "y"]), max_size=60),
    at=st.floats(0, 1),
)
def test_windows_join_at_the_cursor(text: list[str], at: float) -> None:
    file = "".join(text)
    cursor = int(at * len(file))
    here = around(file, cursor)
    assert file[here.start : cursor + len(here.suffix)] == here.prefix + here.suffix
    assert here.start + len(here.prefix) == cursor
    assert len(here.prefix) <= PREFIX_LIMIT
    assert here.line_before == here.prefix[len(here.prefix) - len(here.line_before) :]
    assert not set(here.line_before + here.line_after) & {"\r", "\n"}


def test_what_follows_on_the_line_makes_it_mid_line() -> None:
    assert around("foo(|)\n".replace("|", ""), 4).mid_line
    assert not around("foo(  \nbar", 4).mid_line
    assert not around("foo(\r\nbar", 4).mid_line


def test_binaries_and_very_long_lines_are_not_completed() -> None:
    assert unfit("x = 1\n", 3) is None
    assert unfit("ELF\0\1", 2) == "the file is binary"
    long = "x" * LINE_LIMIT
    assert unfit(f"a\n{long}\nb", 30) == f"the line is longer than {LINE_LIMIT} characters"
    assert unfit(f"a\n{long}\nb", 1) is None
    assert unfit(f"a\n{long}\nb", len(long) + 4) is None
    assert unfit("x" * 50_000_000, 25_000_000) is not None


def test_the_model_reads_plain_line_ends() -> None:
    assert plain("a\r\nb\rc\n") == "a\nb\nc\n"
