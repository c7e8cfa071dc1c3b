"""A checkpoint's tokenizer, and the wall between text and control tokens.

Purpose: turn text into token ids and back. A byte-level BPE `tokenizer.json` is read by the
`tokenizers` library; control tokens are looked up by name, since their numbers differ between
checkpoints.

Guarantee: `encode_plain` never yields the id of an added token, whatever the text spells. A
repository may hold `<|fim_middle|>` or `</tool_call>` in its source; as plain text these are
characters like any others. This does not rest on escaping: plain text is encoded by a second
tokenizer that has no added tokens at all. The library's own switch (`encode_special_tokens`) leaves
out those whose `special` flag is false, which in this family are the tool tokens, so it is not
used.

Detokenisation works on bytes: each id stands for fixed bytes, and an incremental UTF-8 decoder
gives out whole characters only. The library's `DecodeStream` takes a trailing U+FFFD for an
unfinished character, and stalls when the text really holds one.
"""

import codecs
import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from qcn_inference.errors import CheckpointError, unreadable

FIM_PREFIX = "<|fim_prefix|>"
FIM_SUFFIX = "<|fim_suffix|>"
FIM_MIDDLE = "<|fim_middle|>"
FIM_PAD = "<|fim_pad|>"
REPO_NAME = "<|repo_name|>"
FILE_SEP = "<|file_sep|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

# Generation ends on any of these, besides the configured end-of-sequence ids: what follows is
# another part.
STOP_TOKENS = (
    FIM_PREFIX,
    FIM_MIDDLE,
    FIM_SUFFIX,
    FIM_PAD,
    REPO_NAME,
    FILE_SEP,
    END_OF_TEXT,
    IM_END,
)
REQUIRED_TOKENS = (END_OF_TEXT, IM_START, IM_END)
INFILL_TOKENS = (FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, REPO_NAME, FILE_SEP)
"""Where one of these is lacking the model does not fill in the middle."""

REMEDY = "Use the tokenizer.json that belongs to the checkpoint, from the Qwen3-Coder family"


class Tokenizer:
    """Text to token ids and back, as one checkpoint has it."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Read `tokenizer.json` in `folder`; `vocab_size` is the model's number of embeddings.

        Raises:
            CheckpointError: the file is missing, damaged, not byte-level BPE, lacks a special
                required token, or has ids beyond `vocab_size`.
        """
        path = folder / "tokenizer.json"
        described = _read(path)
        self.fingerprint = hashlib.sha256(path.read_bytes()).digest()
        self._with_control = _build(path, described)
        added = {entry["content"]: int(entry["id"]) for entry in described["added_tokens"]}
        self._plain = _build(path, _without_added_tokens(described, set(added)))
        missing = [name for name in REQUIRED_TOKENS if name not in added]
        if missing:
            raise CheckpointError(path, f"lacks the special tokens {', '.join(missing)}", REMEDY)
        self.control_ids = frozenset(added.values())
        self.infills = all(name in added for name in INFILL_TOKENS)
        self.stop_ids = frozenset(added[name] for name in STOP_TOKENS if name in added)
        self.control_names = MappingProxyType(added)
        longest_first = sorted(added, key=len, reverse=True)
        self._control_split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._hidden = frozenset(
            int(entry["id"]) for entry in described["added_tokens"] if entry.get("special")
        )
        self._bytes = _token_bytes(path, self._with_control, added)
        if max(self._bytes) >= vocab_size:
            problem = (
                f"has token ids up to {max(self._bytes)}, the model has {vocab_size} embeddings"
            )
            raise CheckpointError(path, problem, REMEDY)
        self.longest_token_bytes = max(map(len, self._bytes.values()))
        # The files around the current one are the same from keystroke to keystroke.
        self.encode_file = lru_cache(maxsize=256)(self._encode_file)

    def control_id(self, name: str) -> int:
        """The id of one of `REQUIRED_TOKENS`, or, where `infills`, of `INFILL_TOKENS`."""
        return self.control_names[name]

    def split_at_control(self, text: str) -> list[str]:
        """The text cut around each control token's name that is spelt in it."""
        return [piece for piece in self._control_split.split(text) if piece]

    def encode_plain(self, text: str) -> list[int]:
        """The ids of text in which nothing is a control token."""
        return list(self.plain_encoding(text).ids)

    def plain_encoding(self, text: str) -> tokenizers.Encoding:
        """As `encode_plain`, with character offsets."""
        return self._plain.encode(text, add_special_tokens=False)

    def _encode_file(self, text: str) -> tuple[int, ...]:
        return tuple(self.encode_plain(text))

    def encode_with_control(self, text: str) -> list[int]:
        """The ids of a raw prompt whose author wrote the control tokens himself."""
        return list(self._with_control.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes, perhaps part of a character, that a token stands for.

        A control token stands for its name. Empty for an id that no token has: models pad their
        embeddings to a round number.
        """
        return self._bytes.get(token, b"")

    def token_label(self, token: int) -> str:
        r"""A token as text: `bytes:\xe2` for part of a character, as OpenAI writes it."""
        if token not in self._bytes:
            return f"token_id:{token}"
        piece = self._bytes[token]
        try:
            return piece.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def decode(self, ids: list[int]) -> str:
        """The text of ids, control tokens by their names; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def shown_bytes(self, token: int) -> bytes:
        """The bytes of a token in generated text: those of special tokens are never shown."""
        return b"" if token in self._hidden else self.token_bytes(token)


class TextStream:
    """Turns generated ids into text, one at a time, whole characters only."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that this token completes; an unfinished one is never given out."""
        return self._decoder.decode(self._tokenizer.shown_bytes(token))


def _read(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(path, "is missing", REMEDY) from None
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"cannot be read as JSON ({error})", REMEDY) from error
    if not isinstance(described, dict) or not isinstance(described.get("added_tokens"), list):
        raise CheckpointError(path, "is not a tokenizer of the tokenizers library", REMEDY)
    decoder = described.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise CheckpointError(path, "is not a byte-level tokenizer", REMEDY)
    return described


def _build(path: Path, described: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described))
    except Exception as error:  # bare Exception is what the library raises
        problem = f"is refused by the tokenizers library ({error})"
        raise CheckpointError(path, problem, REMEDY) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_added_tokens(described: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The same tokenizer, for which the added tokens' names are text.

    The post-processor goes too: it would cut white space off the character offsets.
    """
    model = dict(described["model"])
    model["vocab"] = {
        piece: number for piece, number in model["vocab"].items() if piece not in names
    }
    return {**described, "added_tokens": [], "post_processor": None, "model": model}


def _token_bytes(
    path: Path, tokenizer: tokenizers.Tokenizer, added: dict[str, int]
) -> dict[int, bytes]:
    byte_of = _byte_alphabet()
    table: dict[int, bytes] = {}
    for piece, number in tokenizer.get_vocab(with_added_tokens=False).items():
        try:
            table[number] = bytes(byte_of[character] for character in piece)
        except KeyError:
            problem = f"token {number} is not written in the byte alphabet"
            raise CheckpointError(path, problem, REMEDY) from None
    table.update((number, name.encode()) for name, number in added.items())
    return table


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's way to write any byte as one visible character.

    Printable ones stand for themselves, the others are U+0100 and on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {chr(byte): byte for byte in visible}
    table.update((chr(0x100 + n), byte) for n, byte in enumerate(hidden))
    return table
