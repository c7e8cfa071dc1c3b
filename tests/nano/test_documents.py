"""Whatever form a document takes, the text in it is the source's text."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nano_toy import SAMPLE, toy_plain, toy_tokenizer
from qcn_nano.corpus import Source
from qcn_nano.documents import (
    Cut,
    choose_cut,
    encode_cut,
    encode_form,
    package_documents,
    split_source,
)
from qcn_nano.tokenizer import CONTROL_TOKENS, PlainText
from sampling import examples

# Lines as source has them: indentation, code, blanks, and texts that spell control tokens.
LINE = st.tuples(
    st.sampled_from(["", "    ", "\t", "        "]),
    st.one_of(
        st.sampled_from(["def f(x):", "return x", "", *CONTROL_TOKENS]), st.text(max_size=20)
    ),
).map("".join)
TEXT = st.lists(LINE, min_size=1, max_size=30).map("\n".join)
SEEDS = st.integers(0, 2**32)


def split_at(ids: list[int], plain: PlainText, *tokens: str) -> list[list[int]]:
    """The ids between control tokens, which must stand in this order and nowhere else."""
    parts, rest = [], ids
    for token in tokens:
        place = rest.index(plain.control(token))
        parts.append(rest[:place])
        rest = rest[place + 1 :]
    return [*parts, rest]


@pytest.mark.long
@examples(sample=40, full=2000)
@given(text=TEXT, seed=SEEDS)
def test_a_cut_gives_the_text_back(text: str, seed: int) -> None:
    assert "".join(choose_cut(text, random.Random(seed))) == text


@pytest.mark.long
@examples(sample=40, full=2000)
@given(text=TEXT, seed=SEEDS, suffix_first=st.booleans())
def test_fill_in_the_middle_round_trips(text: str, seed: int, suffix_first: bool) -> None:
    plain = toy_plain()
    cut = choose_cut(text, random.Random(seed))
    ids = encode_cut(cut, plain, suffix_first) + plain.encode(cut.middle)

    order = ["<|fim_prefix|>", "<|fim_suffix|>"]
    if suffix_first:
        order.reverse()
    nothing, first, second, middle = split_at(ids, plain, *order, "<|fim_middle|>")
    prefix, suffix = (second, first) if suffix_first else (first, second)

    assert nothing == []
    assert Cut(*(plain.decode(part) for part in (prefix, middle, suffix))) == cut


@pytest.mark.long
@examples(sample=40, full=2000)
@given(text=TEXT)
def test_a_control_token_spelt_in_source_stays_text(text: str) -> None:
    plain = toy_plain()
    control = {plain.control(token) for token in CONTROL_TOKENS}
    ids = plain.encode(text)

    assert not control & set(ids)
    assert plain.decode(ids) == text


def test_the_tokenizer_itself_would_have_made_it_a_control_token() -> None:
    # The trap that PlainText exists for.
    assert toy_tokenizer().encode("<|fim_prefix|>").ids == [toy_plain().control("<|fim_prefix|>")]
    assert len(toy_plain().encode("<|fim_prefix|>")) > 1


@pytest.mark.long
@examples(sample=40, full=2000)
@given(text=TEXT, longest=st.integers(401, 600), seed=SEEDS)
def test_the_pieces_of_a_file_join_to_the_file(text: str, longest: int, seed: int) -> None:
    text = text * 20
    pieces = split_source(Source("pkg", "a.py", text), longest, random.Random(seed))

    assert "".join(piece.text for piece in pieces) == text
    assert all(0 < len(piece.text) <= longest for piece in pieces)


@pytest.mark.long
@examples(sample=40, full=2000)
@given(seed=SEEDS, longest=st.integers(150, 400))
def test_a_package_becomes_documents_that_fit_and_hold_its_whole_text(
    seed: int, longest: int
) -> None:
    plain = toy_plain()
    sources = [Source("pkg", f"m{number}.py", f"# {number}\n" + SAMPLE) for number in range(4)]
    documents = list(package_documents(sources, plain, longest, random.Random(seed)))

    assert all(len(document) <= longest for document in documents)
    assert all(document[-1] == plain.control("<|endoftext|>") for document in documents)
    # Headers of the repository format come on top of the sources' own characters.
    letters = "".join(plain.decode(document) for document in documents)
    for character in "abdefint()[]:=":
        wanted = sum(source.text.count(character) for source in sources)
        assert letters.count(character) >= wanted


def test_a_repository_document_has_the_shape_that_completion_sends() -> None:
    plain = toy_plain()
    sources = [Source("pkg", f"m{number}.py", f"x = {number}\n") for number in range(3)]
    texts = set()
    for seed in range(600):
        for document in package_documents(sources, plain, 400, random.Random(seed)):
            texts.add(toy_tokenizer().decode(document, skip_special_tokens=False))

    openings = "<|repo_name|>pkg\n<|file_sep|>m0.py\nx = 0\n<|file_sep|>m1.py\n"
    assert any(text.startswith(openings + "<|fim_prefix|>") for text in texts)
    assert any(text.startswith(openings + "<|fim_suffix|>") for text in texts)
    assert any(text.startswith(openings + "x = 1\n") for text in texts)
    alone = "<|repo_name|>pkg\n<|file_sep|>m0.py\n<|fim_suffix|>"
    assert any(text.startswith(alone) for text in texts)


@pytest.mark.long
@examples(sample=40, full=2000)
@given(text=TEXT, seed=SEEDS)
def test_a_document_ends_once(text: str, seed: int) -> None:
    plain = toy_plain()
    ids = encode_form(text, plain, random.Random(seed))

    assert ids.index(plain.control("<|endoftext|>")) == len(ids) - 1
