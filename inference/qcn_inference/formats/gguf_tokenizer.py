"""The tokenizer inside a GGUF file, as the `tokenizer.json` it was made from."""

import json
from typing import Any

from qcn_inference.errors import CheckpointError
from qcn_inference.formats.gguf import Gguf

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
# How Qwen2's tokenizer, which the file names but does not describe, splits text into words.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REMEDY = "Convert from the safetensors checkpoint instead"


def tokenizer_json(gguf: Gguf) -> bytes:
    """Return the tokenizer in the format of the `tokenizers` library.

    Raises:
        CheckpointError: the file holds another kind of tokenizer than this model family's.
    """
    path = gguf.paths[0]
    kind = [gguf.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre")]
    if kind != ["gpt2", "qwen2"]:
        raise CheckpointError(path, f"holds a tokenizer {kind}; expected gpt2, qwen2", REMEDY)
    tokens, kinds, merges = (_list(gguf, key) for key in ("tokens", "token_type", "merges"))
    if len(tokens) != len(kinds):
        raise CheckpointError(path, "holds no whole vocabulary", REMEDY)
    added = {
        number: kind == CONTROL
        for number, kind in enumerate(kinds)
        if kind in (CONTROL, USER_DEFINED)
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": WORDS},
        "behavior": "Isolated",
        "invert": False,
    }
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": tokens[number],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for number, special in added.items()
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, byte_level | {"use_regex": False}],
        },
        "post_processor": None,
        "decoder": byte_level | {"use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {
                token: number
                for number, token in enumerate(tokens)
                if number not in added and kinds[number] != UNUSED
            },
            "merges": merges,
        },
    }
    return json.dumps(described, ensure_ascii=False).encode()


def _list(gguf: Gguf, key: str) -> list[Any]:
    found = gguf.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(found, list):
        raise CheckpointError(gguf.paths[0], f"holds no list tokenizer.ggml.{key}", REMEDY)
    return found
