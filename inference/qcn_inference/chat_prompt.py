"""From messages to token ids by the checkpoint's template, with data that is data.

A template joins its own text, which holds control tokens, with that of messages and tools, which
must never become one: neither by spelling one nor by completing one that the template begins (a
parameter named `tool_call` between `<` and `>`). So all characters of which control tokens consist
are *marked* in the data before it is rendered: replaced by private ones that neither the data nor
the template holds. In what comes out, a control token that is spelt without a mark is the
template's; then the marks are taken back, and all that stands between control tokens is encoded as
plain text. It does not matter what the template did with the data in between.

For data that spells no control token the ids are those that `transformers` gives. The one
difference: a template that looks for words inside a message finds none (some drop earlier thoughts
up to `</think>`: they stay, as text).

Rejected: sentinels around each text, by which to cut the result apart. Templates trim texts and ask
how they begin, and tokens would never join a template's word and the data's.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qcn_inference.chat_template import ChatTemplate
from qcn_inference.request import RequestError
from qcn_inference.tokenizer import Tokenizer

# Private use, plane 16; a block of it that is free is taken for each request.
PRIVATE, PRIVATE_END = 0x100000, 0x10FFFE

# By these names templates look into messages and schemas, so they stay as they are, unless a
# control token is such a word in brackets, as `<think>`. Other names, a parameter's say, are data.
_MESSAGE_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "id", "arguments"}
_TOOL_KEYS = {"type", "function", "name", "description", "parameters", "strict"}
_SCHEMA_KEYS = {
    *("type", "title", "description", "format", "properties", "required", "items"),
    *("enum", "const", "default", "anyOf", "oneOf", "allOf", "not", "$ref", "$defs", "definitions"),
    *("pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"),
    "additionalProperties",
}
STRUCTURE = frozenset(_MESSAGE_KEYS | _TOOL_KEYS | _SCHEMA_KEYS)
_ROLES = {"system", "user", "assistant", "tool"}
_TYPES = {"function", "string", "number", "integer", "boolean", "object", "array", "null"}
WORDS = frozenset(_ROLES | _TYPES)


class Marks:
    """The private characters of one request."""

    def __init__(self, control: Collection[str], texts: Iterable[str]) -> None:
        """Choose those that none of the `texts` holds.

        Raises:
            RequestError: there are none.
        """
        in_brackets = {_BRACKETS.sub("", name) for name in control}
        self._kept, self._kept_keys = WORDS - in_brackets, STRUCTURE - in_brackets
        self.alphabet = "".join(sorted(set("".join(control))))
        size = len(self.alphabet) + 1
        private = {ord(one) for text in texts for one in _PRIVATE.findall(text)}
        blocks = range(PRIVATE, PRIVATE_END - size, size)
        free = (at for at in blocks if private.isdisjoint(range(at, at + size)))
        base = next(free, None)
        if base is None:
            raise RequestError("the messages hold too many different private-use characters")
        self.base = base
        self.place = chr(base + len(self.alphabet))
        """One more: stands for what is put in later, as ids."""
        self._marked = {ord(plain): base + n for n, plain in enumerate(self.alphabet)}
        self._plain = {base + n: plain for n, plain in enumerate(self.alphabet)}

    def mark(self, text: str) -> str:
        """Text that holds nothing of a control token."""
        return text.translate(self._marked)

    def unmark(self, text: str) -> str:
        """The text that was marked."""
        return text.translate(self._plain)

    def data(self, value: Any, *, named: bool = False) -> Any:
        """JSON data with all text in it marked.

        Words of the structure stay as they are, but not where keys are names (`properties`).
        """
        if isinstance(value, str):
            return value if value in self._kept else self.mark(value)
        if isinstance(value, list):
            return [self.data(one) for one in value]
        if isinstance(value, dict):
            kept = frozenset() if named else self._kept_keys
            return {
                key if key in kept else self.mark(key): self.data(
                    one, named=key in _NAMING and not named
                )
                for key, one in value.items()
            }
        return value


_NAMING = frozenset({"properties", "arguments", "$defs", "definitions", "default", "const", "enum"})
_BRACKETS = re.compile(r"^\W+|\W+$")
_PRIVATE = re.compile(f"[{chr(PRIVATE)}-{chr(PRIVATE_END)}]")


def texts_in(value: Any) -> Iterator[str]:
    """All strings in JSON data, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from texts_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts_in(one)


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a template is to make, and of what the marks in it are."""

    marks: Marks
    request: Mapping[str, Any]  # for `template_worker.py`

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        values: Mapping[str, Any],
        *,
        longest: int,
        placed: bool = False,
    ) -> "Rendering":
        """Prepare `values`: `messages`, `tools` and what else the template knows.

        `longest` is how many characters may come out. With `placed` the first message, which is the
        system's, begins with the place of a repository.

        Raises:
            RequestError: there is too much text, or of too many kinds.
        """
        texts = list(texts_in(dict(values)))
        if sum(map(len, texts)) > longest:
            raise RequestError("the messages are longer than the model's context")
        own = [template.text, *template.tokens.values()]
        marks = Marks(tokenizer.control_names, [*own, *texts])
        marked = {name: marks.data(value) for name, value in values.items()}
        if placed:
            first = marked["messages"][0]
            behind = f"\n\n{first['content']}" if first["content"] else ""
            first["content"] = marks.place + behind
        request = {
            "values": {**template.tokens, **marked, "add_generation_prompt": True},
            "base": marks.base,
            "alphabet": marks.alphabet,
            "longest": longest,
        }
        return cls(marks, request)

    def around_place(self, text: str) -> tuple[str, str]:
        """What a rendered text has in front of the place, and behind it.

        Raises:
            RequestError: the template did not put it in, or more than once.
        """
        before, *behind = text.split(self.marks.place)
        if len(behind) != 1:
            raise RequestError("the model's chat template has no place for a repository")
        return before, behind[0]

    def ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """The ids of a rendered text, in which only the template's control tokens are such."""
        found = []
        for piece in tokenizer.split_at_control(text):
            if piece in tokenizer.control_names:
                found.append(tokenizer.control_names[piece])
            else:
                found += tokenizer.encode_plain(self.marks.unmark(piece))
        return found
