"""What a user is told of an answer while it is written."""

from hypothesis import given
from hypothesis import strategies as st

from qcn_lsp.engine.writing import WIDTH, Writing
from qcn_lsp.postprocess.hidden import hidden_characters


def told(*pieces: str) -> list[str]:
    lines: list[str] = []
    writing = Writing(lines.append)
    for piece in pieces:
        writing.wrote(piece)
    return lines


def test_the_lines_of_code_are_counted_and_the_last_is_shown() -> None:
    assert told(
        "Here", " it is:\n", "\n", "```python\n", "def f():\n    ret", "urn\t1\n", "```\n"
    ) == [
        "1 line: Here it is:",
        "1 line: Here it is:",
        "1 line: Here it is:",
        "3 lines: ret",
        "3 lines: return 1",
        "3 lines: return 1",
    ]


def test_an_unfinished_line_is_told_of_after_a_while() -> None:
    assert told(*"return a + b + c") == ["1 line: return a", "1 line: return a + b + c"]


def test_nothing_but_a_fence_is_no_line() -> None:
    assert told("\n", "```\n") == ["The model writes"] * 2


def test_how_far_the_model_reads() -> None:
    lines: list[str] = []
    writing = Writing(lines.append)
    for done, total in ((0, 3), (2, 3), (0, 0)):
        writing.reading(done, total)
    assert lines == [f"The model reads: {percent} %" for percent in (0, 66, 0)]


@given(st.lists(st.text(max_size=2 * WIDTH)))
def test_it_is_one_short_line_with_nothing_hidden(pieces: list[str]) -> None:
    for line in told(*pieces):
        assert "\n" not in line
        assert not hidden_characters(line)
        assert len(line) <= WIDTH + len("99 lines: ")


@given(st.lists(st.text(alphabet="ab \n`", min_size=1), min_size=1))
def test_so_far_is_all_that_was_written_at_the_last_line_end(pieces: list[str]) -> None:
    seen: list[str] = []
    writing = Writing(lambda _: None, seen.append)
    whole = ""
    for piece in [*pieces, "\n"]:
        writing.wrote(piece)
        whole += piece
        assert "\n" not in piece or seen[-1] == whole
