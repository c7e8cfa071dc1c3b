"""Text to ids and back, and that text never becomes a control token."""

import json
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from engine_support import CONTROL_STRINGS, VOCAB_SIZE, write_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.errors import CheckpointError
from qcn_inference.tokenizer import INFILL_TOKENS, TextStream, Tokenizer
from sampling import examples

# Text in which control strings, whole and in parts, stand among anything else.
hostile_text = st.lists(
    st.text()
    | st.sampled_from([*CONTROL_STRINGS, "<|fim_", "middle|>", "<|", "|>", "é", "\U0001f642"])
).map("".join)


@pytest.mark.long
@examples(sample=200, full=1500)
@given(text=hostile_text)
def test_plain_text_is_never_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_plain(text)
    assert not tokenizer.control_ids & set(ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)  # as Qwen's tokenizer does


@pytest.mark.long
@examples(sample=200, full=1500)
@given(ids=st.lists(st.integers(0, VOCAB_SIZE - 1)))
def test_streamed_text_is_whole_characters_and_no_special_token(
    tokenizer: Tokenizer, model_folder: Path, ids: list[int]
) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    # The library decodes all at once; it shows an unfinished character at the end as U+FFFD, and
    # the first two bytes of half a surrogate pair, of which Python awaits the third, as two.
    library = tokenizers.Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    whole = library.decode(ids, skip_special_tokens=True)
    shown = "".join(pieces)
    assert shown in (whole, *(whole.removesuffix("\ufffd" * n) for n in (1, 2)))


def test_bytes_that_are_no_character_are_shown_when_that_is_certain(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    token_of = {tokenizer.shown_bytes(token): token for token in range(VOCAB_SIZE)}
    pieces = [stream.push(token_of[bytes([byte])]) for byte in (0xED, 0xA1, ord("x"))]
    assert pieces == ["", "", "\ufffd\ufffdx"]


def test_a_character_split_between_tokens_comes_out_once_it_is_complete(
    tokenizer: Tokenizer,
) -> None:
    stream = TextStream(tokenizer)
    ids = tokenizer.encode_plain("\U0001f642")
    assert len(ids) == 4  # one per byte in this tokenizer
    assert [stream.push(token) for token in ids] == ["", "", "", "\U0001f642"]


def test_a_replacement_character_in_the_text_does_not_stall_the_stream(
    tokenizer: Tokenizer,
) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode_plain("\ufffda")]
    assert pieces[-2:] == ["\ufffd", "a"]


def test_raw_prompts_hold_control_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_with_control("<|fim_prefix|>a<|fim_suffix|><|fim_middle|></tool_call>")
    names = [tokenizer.token_label(token) for token in ids]
    assert names == ["<|fim_prefix|>", "a", "<|fim_suffix|>", "<|fim_middle|>", "</tool_call>"]


def test_labels_of_what_is_no_text(tokenizer: Tokenizer) -> None:
    first_byte = tokenizer.encode_plain("\U0001f642")[0]
    assert tokenizer.token_label(first_byte) == "bytes:\\xf0"
    assert tokenizer.token_label(VOCAB_SIZE - 1) == f"token_id:{VOCAB_SIZE - 1}"  # padding


def check_refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Tokenizer(folder, VOCAB_SIZE)
    for word in (str(folder / "tokenizer.json"), *words):
        assert word in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    check_refused(tmp_path, "is missing", "Use the tokenizer.json that belongs to the checkpoint")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[]", "is not a tokenizer"),
        (b'{"added_tokens": []}', "is not a byte-level tokenizer"),
        (b'{"added_tokens": [], "decoder": {"type": "ByteLevel"}}', "is refused by the tokenizers"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    check_refused(tmp_path, problem)


def test_missing_special_tokens_are_named(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, without=["<|endoftext|>", "<|im_end|>"])
    check_refused(tmp_path, "lacks the special tokens <|endoftext|>, <|im_end|>")


@pytest.mark.parametrize("name", INFILL_TOKENS)
def test_without_one_of_its_tokens_a_model_does_not_fill_in_the_middle(
    tmp_path: Path, name: str
) -> None:
    assert Tokenizer(write_tokenizer(tmp_path / "all"), VOCAB_SIZE).infills
    tokenizer = Tokenizer(write_tokenizer(tmp_path / "some", without=[name]), VOCAB_SIZE)
    assert not tokenizer.infills
    assert set(tokenizer.encode_plain(f"a{name}b")).isdisjoint(tokenizer.control_ids)
    assert len(tokenizer.stop_ids) >= 6


def test_ids_beyond_the_embeddings_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="the model has 300 embeddings"):
        Tokenizer(tmp_path, 300)


def test_names_of_control_tokens_in_the_vocabulary_stay_out_of_plain_text(tmp_path: Path) -> None:
    """Some tokenizers list `<|endoftext|>` among the ordinary pieces, and take those whole."""
    path = write_tokenizer(tmp_path) / "tokenizer.json"
    described = json.loads(path.read_text())
    described["model"]["ignore_merges"] = True
    described["model"]["vocab"]["<|endoftext|>"] = described["added_tokens"][0]["id"]
    described["pre_tokenizer"] = described["pre_tokenizer"]["pretokenizers"][1]  # no split
    path.write_text(json.dumps(described))
    tokenizer = Tokenizer(tmp_path, VOCAB_SIZE)
    assert not tokenizer.control_ids & set(tokenizer.encode_plain("<|endoftext|>"))
