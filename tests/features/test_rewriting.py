"""A model's new version of a piece of a file: how it is made to fit, and what is refused."""

import textwrap
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from qcn_lsp.postprocess.hidden import hidden_characters
from qcn_lsp.rewriting import Piece, Unacceptable, fitted, judge

PYTHON = PurePosixPath("a.py")


def piece_of(text: str, old: str, path: PurePosixPath = PYTHON) -> Piece:
    start = text.index(old)
    return Piece(path, text, start, start + len(old))


@st.composite
def functions(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Draw how deep a function stands, and the depths of its lines below the first."""
    depths = [draw(st.integers(1, 1))]
    for _ in range(draw(st.integers(0, 8))):
        depths.append(draw(st.integers(1, depths[-1] + 1)))
    return draw(st.integers(0, 3)), depths


def lines_of(base: int, depths: list[int], unit: str) -> list[str]:
    body = (f"{unit * (base + depth)}line_{number}(é)" for number, depth in enumerate(depths))
    return [f"{unit * base}def f():", *body]


@pytest.mark.long
@examples(sample=100, full=5_000)
@given(
    functions(),
    st.sampled_from(["\t", "  ", "    "]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["as it is", "from the margin", "from the first word", "other indents"]),
    st.sampled_from(["", "\n", "\n\n"]),
    st.booleans(),
)
def test_however_a_model_indents_a_text_it_is_the_same_text(
    function: tuple[int, list[int]], unit: str, end: str, how: str, behind: str, last: bool
) -> None:
    base, depths = function
    around = [f"{unit * depth}class C{depth}:" for depth in range(base)]
    lines = lines_of(base, depths, unit)
    old = end.join(lines)
    text = end.join([*around, ""]) * bool(around) + old + end * last
    answer = "\n".join(lines)
    if how == "from the margin":
        answer = textwrap.dedent(answer)
    elif how == "from the first word":
        answer = answer.lstrip()
    elif how == "other indents":
        answer = "\n".join(lines_of(0, depths, "    " if unit == "\t" else "\t"))
    piece = piece_of(text, old)
    assert piece.with_new(fitted(answer + behind, piece)) == text


@pytest.mark.parametrize(
    ("old", "answer", "new"),
    [
        ("  f() {\n    x\n  }", "f() {\n    y\n  }", "  f() {\n    y\n  }"),
        ("  f() {\n    x\n  }", "f() {\n  y\n}", "  f() {\n    y\n  }"),
        ("  f() {\n  }", "  f() {\n#if A\n#endif\n  }", "  f() {\n#if A\n#endif\n  }"),
        ("x = 1\n", "x = 2", "x = 2\n"),
        ("x = 1\n\n", "x = 2\n", "x = 2\n\n"),
        ("x = 1", "\n\nx = 2\n\n", "x = 2"),
        ("x = 1", "\tx = 2", "x = 2"),
    ],
)  # fmt: skip
def test_fitting(old: str, answer: str, new: str) -> None:
    assert fitted(answer, piece_of(f"{old}", old)) == new


def test_mixed_line_ends_are_those_of_the_piece() -> None:
    piece = piece_of("a\nb\nc\nx = (\r\n1)\nd\n", "x = (\r\n1)")
    assert fitted("x = (\n2)", piece) == "x = (\r\n2)"


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ("def f(:", "not well formed"),
        ("def f():\n    return (1", "not well formed"),
        ("x = 'a\u202eb'", "U\\+202E"),
        ("x\u200b = 1", "U\\+200B"),
        ("x = 1  # \U000e0041", "U\\+E0041"),
        ("x = '<|fim_middle|>'", "control token"),
    ],
)
def test_what_is_refused(new: str, reason: str) -> None:
    with pytest.raises(Unacceptable, match=reason):
        judge(new, piece_of("x = 1\n", "x = 1"))


def test_what_stands_there_already_may_stay() -> None:
    old = "x = '\u202e<|im_start|>'"
    judge(old + "  # that is so", piece_of(old, old))


def test_a_broken_file_may_stay_as_broken() -> None:
    judge("x = 2", piece_of("def f(:\n\nx = 1\n", "x = 1"))


def test_without_a_grammar_no_text_is_malformed() -> None:
    judge("(((", piece_of("x", "x", PurePosixPath("notes.txt")))


@pytest.mark.parametrize("text", ["plain\r\n\ttext", "żółć 漢字 🙂 é", "e\u0301", "❤\ufe0f"])
def test_what_a_reader_sees_is_not_hidden(text: str) -> None:
    assert hidden_characters(text) == frozenset()


@pytest.mark.parametrize(
    "character",
    "\0\x07\x1b\x7f\x85\xad\u061c\u180e\u200b\u200d\u200e\u2028\u202a\u202e\u2060\u2066\u2069"
    "\u3164\ufeff\ufff9\U000e0001\U000e0061\U000e0100\ue000",
)
def test_what_a_reader_does_not_see_is(character: str) -> None:
    assert hidden_characters(f"a{character}b") == {character}
