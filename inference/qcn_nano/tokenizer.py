"""Byte-level BPE with the control tokens of the Qwen family.

The control tokens are *added* tokens: they have no entry in the BPE vocabulary, so text that merely
spells one (`PlainText`) can never become one.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
# Added, but shown in decoded text, as in Qwen's own tokenizer.
TOOL_TOKENS = ("<tool_call>", "</tool_call>")
CONTROL_TOKENS = SPECIAL_TOKENS + TOOL_TOKENS

VOCAB_SIZE = 8192  # all together; a multiple of 64

# The split of Qwen's tokenizer: digits one by one, runs of white space whole but for a last space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Train on an iterable of texts; the control tokens take the last ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in TOOL_TOKENS]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write `tokenizer.json` and the `tokenizer_config.json` that transformers reads beside it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")


class PlainText:
    """Encodes text in which nothing is a control token, and names the control tokens' ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bpe = Tokenizer(tokenizer.model)
        self._bpe.pre_tokenizer = tokenizer.pre_tokenizer
        self._bpe.decoder = tokenizer.decoder
        numbers = {token: tokenizer.token_to_id(token) for token in CONTROL_TOKENS}
        self._control = {token: number for token, number in numbers.items() if number is not None}
        missing = sorted(numbers.keys() - self._control.keys())
        if missing:
            raise ValueError(
                f"the tokenizer lacks the control tokens {missing}: train it with this recipe"
            )

    def control(self, token: str) -> int:
        """The id of a control token, by name."""
        return self._control[token]

    def encode(self, text: str) -> list[int]:
        """The ids of a text; `<|fim_prefix|>` in it is thirteen characters like any others."""
        return list(self._bpe.encode(text).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of ids that hold no control token."""
        return str(self._bpe.decode(ids))
