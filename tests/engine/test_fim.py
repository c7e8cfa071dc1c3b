"""Fill-in-the-middle prompts: their layout, their size, and what a keystroke changes."""

import unicodedata

import pytest
from engine_support import CONTROL_STRINGS
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.config import FimOrder
from qcn_inference.fim import ContextFile, InfillText, infill_prompt
from qcn_inference.grid import TYPED_BLOCK, Grid
from qcn_inference.request import Prompt, RequestError
from qcn_inference.tokenizer import Tokenizer
from sampling import count, examples

LARGE = 100_000


def composed(text: str) -> str:
    """Text as Qwen's tokenizer gives it back."""
    return unicodedata.normalize("NFC", text)


def shown(
    tokenizer: Tokenizer,
    text: InfillText,
    room: int = LARGE,
    order: FimOrder = "prefix_first",
) -> str:
    return tokenizer.decode(list(infill_prompt(tokenizer, text, room, order).ids))


def shared(tokenizer: Tokenizer, before: Prompt, after: Prompt) -> int:
    """Tokens of a prompt that are known after the one before it: up to its last good checkpoint."""
    ends = [end for _, end in Grid(tokenizer).blocks(before.ids)]
    kept = {max((end for end in ends if end <= at), default=0) for at in before.keep}
    return max((at for at in kept if list(before.ids[:at]) == list(after.ids[:at])), default=0)


ORDERS: list[FimOrder] = ["prefix_first", "suffix_first"]


def test_a_bare_file(tokenizer: Tokenizer) -> None:
    text = InfillText(prefix="def f(", suffix="):\n")
    assert shown(tokenizer, text) == "<|fim_prefix|>def f(<|fim_suffix|>):\n<|fim_middle|>"


def test_a_model_that_completes_so_reads_the_suffix_first(tokenizer: Tokenizer) -> None:
    text = InfillText("def f(", "):\n", "a.py", "thing")
    assert shown(tokenizer, text, order="suffix_first") == (
        "<|repo_name|>thing\n<|file_sep|>a.py\n<|fim_suffix|>):\n<|fim_prefix|>def f(<|fim_middle|>"
    )


def test_a_file_of_a_repository(tokenizer: Tokenizer) -> None:
    text = InfillText(
        prefix="import b\n",
        suffix="",
        path="src/a.py",
        repo="thing",
        extra=(ContextFile("src/b.py", "B = 1\n"), ContextFile("src/c.py", "C = 2")),
    )
    assert shown(tokenizer, text) == (
        "<|repo_name|>thing\n"
        "<|file_sep|>src/b.py\nB = 1\n"
        "<|file_sep|>src/c.py\nC = 2\n"
        "<|file_sep|>src/a.py\n"
        "<|fim_prefix|>import b\n<|fim_suffix|><|fim_middle|>"
    )


hostile = st.lists(st.text(max_size=20) | st.sampled_from([*CONTROL_STRINGS, "\n"])).map("".join)


@pytest.mark.long
@examples(sample=100, full=1000)
@given(
    text=st.builds(
        InfillText,
        hostile,
        hostile,
        hostile,
        hostile,
        st.lists(st.builds(ContextFile, hostile, hostile), max_size=3).map(tuple),
    )
)
def test_only_the_format_places_control_tokens(tokenizer: Tokenizer, text: InfillText) -> None:
    ids = infill_prompt(tokenizer, text, LARGE).ids
    control = [tokenizer.token_label(token) for token in ids if token in tokenizer.control_ids]
    opening = ["<|repo_name|>", *["<|file_sep|>"] * (len(text.extra) + 1)]
    fim = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    assert control == (opening if text.extra or text.path or text.repo else []) + fim


lines = st.lists(
    st.sampled_from(["x = 1", "    return e\u0301", "", "\U0001f642" * 9, "long " * 30])
)
code = st.tuples(lines, st.sampled_from(["", "\n"])).map(
    lambda parts: "\n".join(parts[0]) + parts[1]
)


@pytest.mark.long
@examples(sample=200, full=1500)
@given(
    prefix=code,
    suffix=code,
    extra=st.lists(st.builds(ContextFile, st.just("b.py"), code), max_size=4).map(tuple),
    room=st.integers(30, 400),
    order=st.sampled_from(ORDERS),
)
def test_whatever_does_not_fit_is_cut_and_told(
    tokenizer: Tokenizer,
    prefix: str,
    suffix: str,
    extra: tuple[ContextFile, ...],
    room: int,
    order: FimOrder,
) -> None:
    text = InfillText(prefix, suffix, "a.py", "r", extra)
    prompt = infill_prompt(tokenizer, text, room, order)
    assert len(prompt.ids) <= room
    kept = tokenizer.decode(list(prompt.ids))
    names = ["<|fim_prefix|>", "<|fim_suffix|>"]
    if order == "suffix_first":
        names.reverse()
    before, _, rest = kept.partition(names[0])
    first, _, rest = rest.partition(names[1])
    second, _, end = rest.partition("<|fim_middle|>")
    kept_prefix, kept_suffix = (second, first) if order == "suffix_first" else (first, second)
    assert end == ""
    # A cut inside a line may split a character; the rest is the text next to the cursor.
    assert composed(prefix).endswith(kept_prefix.lstrip("\ufffd"))
    assert composed(suffix).startswith(kept_suffix.rstrip("\ufffd"))
    kept_files = before.count("<|file_sep|>") - 1
    texts = [composed(f.text) for f in extra[len(extra) - kept_files :]]
    ended = [text if text.endswith("\n") else text + "\n" for text in texts]
    files = "".join(f"<|file_sep|>b.py\n{text}" for text in ended)
    assert before == f"<|repo_name|>r\n{files}<|file_sep|>a.py\n"
    complete = (kept_prefix, kept_suffix) == (composed(prefix), composed(suffix))
    complete = complete and kept_files == len(extra)
    assert prompt.truncated == (not complete)


def test_lines_are_kept_whole(tokenizer: Tokenizer) -> None:
    numbered = "".join(f"line {n}\n" for n in range(200))
    kept = shown(tokenizer, InfillText(numbered + "cur", "sor\n" + numbered), 300)
    prefix, _, suffix = kept.removeprefix("<|fim_prefix|>").partition("<|fim_suffix|>")
    assert prefix.startswith("line ")
    assert prefix.endswith("line 199\ncur")
    assert suffix.startswith("sor\nline 0\n")
    assert suffix.endswith("\n<|fim_middle|>")


def test_files_are_dropped_from_the_front(tokenizer: Tokenizer) -> None:
    files = tuple(ContextFile(f"{n}.py", "x = 1\n" * 20) for n in range(9))
    kept = shown(tokenizer, InfillText("a", "b", "cur.py", "r", files), 400)
    first = 9 - (kept.count("<|file_sep|>") - 1)
    assert 0 < first < 9
    assert [f"<|file_sep|>{n}.py" in kept for n in range(9)] == [n >= first for n in range(9)]


def test_a_name_that_does_not_fit_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="room for 20 prompt tokens"):
        infill_prompt(tokenizer, InfillText("a", "b", "deep/" * 50), 20)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("functions", "share"),
    [
        pytest.param(15, 0.066, id="dropping files"),
        pytest.param(150, 0.09, id="cutting the prefix"),
    ],
)
def test_typing_leaves_the_prompt_before_the_line_as_it_was(
    tokenizer: Tokenizer, functions: int, share: float, order: FimOrder
) -> None:
    """Beyond the context, with files in front: almost every keystroke extends the last prompt.

    A checkpoint of one prompt is good for the next if its tokens up to there are the same.
    `share` is what may be read again, beside one block; an exact fit, without anchors and steps,
    reads more.
    """
    files = tuple(ContextFile(f"{n}.py", f"value_{n} = {n}\n") for n in range(60))
    typed = "".join(
        f"    total_{n} = compute(total_{n - 1})\n" for n in range(count(sample=12, full=60))
    )
    base = "".join(f"def function_{n}(a, b):\n    return a + {n} * b\n" for n in range(functions))
    reused = total = 0
    start = InfillText(base, "\nend\n", "a.py", "r", files)
    before = infill_prompt(tokenizer, start, 1000, order)
    for end in range(1, len(typed)):
        text = InfillText(base + typed[:end], "\nend\n", "a.py", "r", files)
        prompt = infill_prompt(tokenizer, text, 1000, order)
        assert prompt.truncated
        reused += shared(tokenizer, before, prompt)
        total += len(prompt.ids)
        before = prompt
    assert total - reused < share * total + TYPED_BLOCK * len(typed)


def test_with_the_suffix_first_a_typed_character_costs_its_line_whatever_follows(
    tokenizer: Tokenizer,
) -> None:
    suffix = "\n" + "after = 1\n" * 40
    costs = {}
    for order in ORDERS:
        first, second = (
            infill_prompt(tokenizer, InfillText(f"x = 1\nvalue{typed}", suffix), LARGE, order)
            for typed in ("", "_")
        )
        costs[order] = len(second.ids) - shared(tokenizer, first, second)
    assert costs["suffix_first"] < 20
    assert costs["prefix_first"] > 200


def test_a_bracket_closed_behind_the_cursor_moves_no_cut(tokenizer: Tokenizer) -> None:
    """Editors insert it while one types: the suffix is longer then, the prefix's room smaller."""
    prefix = "".join(f"def function_{n}(a, b):\n    return a + {n} * b\n" for n in range(150))
    starts = set()
    for brackets in range(40):
        text = InfillText(prefix, ")" * brackets + "\nend\n")
        ids = infill_prompt(tokenizer, text, 1000).ids
        starts.add(tokenizer.decode(list(ids[:20])))
    assert len(starts) <= 3


def test_a_line_of_fifty_megabytes_is_not_tokenised_whole(tokenizer: Tokenizer) -> None:
    """Nor is it lost: what stands next to the cursor is kept. (Whole, it would take minutes.)"""
    prompt = infill_prompt(tokenizer, InfillText("x" * 50_000_000 + "y", "z" * 50_000_000), 500)
    assert prompt.truncated
    kept = tokenizer.decode(list(prompt.ids))
    assert "xy<|fim_suffix|>zz" in kept
