"""Calls of tools as the Qwen3-Coder models write them, read while they are being written.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    value, which may span lines
    </parameter>
    </function>
    </tool_call>

A value stands there unescaped, so nothing in it can be told from the format but by rules:

- It ends at the first `</parameter>`. Where a model leaves that out, it ends at a line that opens
  another parameter which the tool declares and the call does not have yet, or at `</function>` with
  `</tool_call>` behind it. A `</function>` alone ends no value.
- One line break at its start and one at its end belong to the format.
- The tool's JSON schema says what the text stands for. Text that is not what the schema asks for
  stays text: the tool, not this parser, refuses it.

Everything is data: nothing is evaluated (a parser of this format that called `eval` was
CVE-2025-9141), numbers and nesting are bounded, and what comes out are None, bools, ints, finite
floats, strings, lists and dicts with string keys. Strings are such as UTF-8 can write.

What was read does not depend on where the text was cut into pieces. A call that the end of the
answer cuts short is left open, as OpenAI leaves it: half an argument must not look like a whole.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]

CALL, END_CALL = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"

LONGEST_NAME = 256
LONGEST_NUMBER = 400  # digits: beyond what any float holds, far below what Python refuses
DEEPEST = 64  # lists and dicts in each other
WIDEST_GAP = 64  # white space between the two marks that end a call

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_END_OF_CALL = re.compile(rf"{END_FUNCTION}\s{{0,{WIDEST_GAP}}}{END_CALL}")
_ENDS_LEFT = re.compile(rf"({END_FUNCTION}\s*)?({END_CALL}\s*)?\Z")
_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs
_LONGEST_MARK = len(f"\n{PARAMETER}>") + LONGEST_NAME
_MARKS_IN_FUNCTION = (END_FUNCTION, END_CALL, PARAMETER, CALL)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called: of each parameter that it declares, the JSON types."""

    name: str
    parameters: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, schema: object) -> "Tool":
        """Read the JSON schema of a function's parameters; what is no such declares none."""
        declared = schema.get("properties") if isinstance(schema, Mapping) else None
        declared = declared if isinstance(declared, Mapping) else {}
        return cls(name, {key: _types(one, schema) for key, one in declared.items()})


@dataclass(frozen=True, slots=True)
class Text:
    """What the model says beside its calls."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments, as JSON: joined they are an object."""

    index: int
    json: str


Event = Text | Call | Arguments


class ToolCallParser:
    """Takes a model's answer piece by piece and tells text from calls.

    A `<function=` that no `<tool_call>` precedes opens a call only of a tool that is declared.
    White space around calls is no text.
    """

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = tools
        self._rest = ""  # not decided yet
        self._state: Callable[[], list[Event] | None] = self._in_text
        self._space = ""  # white space that is text only if text follows
        self._behind_call = False
        self._calls = 0
        self._tool = Tool("")
        self._given: set[str] = set()
        self._key = ""
        self._seen = 0  # characters of a value in which no mark begins

    def push(self, text: str) -> list[Event]:
        """Take more of the answer; return what is certain now."""
        self._rest += text
        events: list[Event] = []
        while (found := self._state()) is not None:
            events += found
        return events

    def finish(self, *, complete: bool) -> list[Event]:
        """Take it that no more comes; `complete` says that the model ended the answer itself."""
        state, self._state = self._state, lambda: None
        if state == self._in_text:
            return self._last_said(self._rest)
        if state == self._before_function:
            return self._last_said(CALL + self._rest)
        if state == self._behind_function or not complete:
            return []
        value = self._argument(_ENDS_LEFT.sub("", self._rest, 1)) if state == self._in_value else []
        return [*value, *self._end_call()]

    # Each state takes what it can from the front of `_rest` and returns what that was; None where
    # more must come first.

    def _in_text(self) -> list[Event] | None:
        at = min((at for at in map(self._rest.find, (CALL, FUNCTION)) if at >= 0), default=None)
        if at is None:
            return self._said(self._take(-_begun(self._rest, (CALL, FUNCTION)) or None))
        if at > 0:
            return self._said(self._take(at))
        if self._rest.startswith(CALL):
            self._take(len(CALL))
            self._state = self._before_function
            return []
        name = _name(self._rest, len(FUNCTION))
        if name is None:
            return None
        if name in self._tools:
            return self._begin_call(len(FUNCTION), name)
        return self._said(self._take(1))  # it only looks alike

    def _before_function(self) -> list[Event] | None:
        behind_space = self._rest.lstrip()
        start = len(self._rest) - len(behind_space) + len(FUNCTION)
        if behind_space.startswith(FUNCTION):
            name = _name(self._rest, start)
            if name is None:
                return None
            if name:
                return self._begin_call(start, name)
        elif FUNCTION.startswith(behind_space):
            return None
        self._state = self._in_text
        return self._said(CALL)  # no call after all

    def _in_function(self) -> list[Event] | None:
        at = min((at for at in map(self._rest.find, _MARKS_IN_FUNCTION) if at >= 0), default=None)
        if at is None:  # what stands between parameters belongs to nothing
            self._take(-_begun(self._rest, _MARKS_IN_FUNCTION) or None)
            return None
        self._take(at)
        if self._rest.startswith(PARAMETER):
            key = _name(self._rest, len(PARAMETER))
            if key is None:
                return None
            self._take(len(PARAMETER) + len(key))
            if key:
                self._take(1)
                self._key, self._seen, self._state = key, 0, self._in_value
            return []
        for mark, state in (
            (END_FUNCTION, self._behind_function),
            (END_CALL, self._in_text),
            (CALL, self._before_function),
        ):
            if self._rest.startswith(mark):
                self._take(len(mark))
                self._state = state
                break
        return self._end_call()

    def _behind_function(self) -> list[Event] | None:
        """Where the end of the call stands, unless it is missing."""
        behind_space = self._rest.lstrip()
        if behind_space.startswith(END_CALL):
            self._take(len(self._rest) - len(behind_space) + len(END_CALL))
        elif END_CALL.startswith(behind_space):
            return None
        self._state = self._in_text
        return []

    def _in_value(self) -> list[Event] | None:
        found = self._end_of_value()
        if found is None:
            self._seen = max(0, len(self._rest) - _LONGEST_MARK)
            return None
        end, behind = found
        value = self._take(end)
        self._take(behind - end)
        self._state = self._in_function
        return self._argument(value)

    def _end_of_value(self) -> tuple[int, int] | None:
        """Where the value ends in `_rest`, and where what stands behind it begins."""
        ends = []
        if (at := self._rest.find(END_PARAMETER, self._seen)) >= 0:
            ends.append((at, at + len(END_PARAMETER)))
        if end_of_call := _END_OF_CALL.search(self._rest, self._seen):
            ends.append((end_of_call.start(), end_of_call.start()))
        at = self._rest.find(f"\n{PARAMETER}", self._seen)
        while at >= 0:
            name = _name(self._rest, at + 1 + len(PARAMETER))
            if name and name in self._tool.parameters and name not in {*self._given, self._key}:
                ends.append((at + 1, at + 1))
                break
            at = self._rest.find(f"\n{PARAMETER}", at + 1)
        return min(ends, default=None)

    def _begin_call(self, start: int, name: str) -> list[Event]:
        self._take(start + len(name) + 1)
        self._space = ""
        self._tool, self._given = self._tools.get(name, Tool(name)), set()
        self._state = self._in_function
        self._calls += 1
        return [Call(self._calls - 1, name)]

    def _argument(self, text: str) -> list[Event]:
        """A parameter's value; of one that is given twice the first counts."""
        if self._key in self._given:
            return []
        value = converted(_without_line_breaks(text), self._tool.parameters.get(self._key, ()))
        opening = ", " if self._given else "{"
        self._given.add(self._key)
        return [Arguments(self._calls - 1, f"{opening}{_json(self._key)}: {_json(value)}")]

    def _end_call(self) -> list[Event]:
        self._behind_call = True
        return [Arguments(self._calls - 1, "}" if self._given else "{}")]

    def _said(self, text: str) -> list[Event] | None:
        """Text; None where there is none."""
        if not text:
            return None
        said = self._space + text
        if self._behind_call:
            said = said.lstrip()
        stripped = said.rstrip()
        self._space = said[len(stripped) :]
        self._behind_call = self._behind_call and not stripped
        return [Text(stripped)] if stripped else []

    def _last_said(self, text: str) -> list[Event]:
        said = self._said(text) or []
        return [*said, Text(self._space)] if self._space and not self._calls else said

    def _take(self, end: int | None) -> str:
        taken = self._rest[:end]
        self._rest = self._rest[len(taken) :]
        return taken


def converted(text: str, types: Collection[str]) -> Plain:
    """What a parameter's text stands for as one of these JSON types; else the text."""
    for kind, read in _READERS.items():
        if kind in types:
            try:
                return read(text.strip())
            except (ValueError, RecursionError):
                continue
    return text


def loads(text: str) -> Plain:
    """JSON as plain data within bounds.

    Half of a surrogate pair, which JSON can spell and UTF-8 cannot, is read as U+FFFD.

    Raises:
        ValueError, RecursionError: it is no JSON, nested too deep, or holds a number too long.
    """
    value: Plain = json.loads(
        text, parse_int=_integer, parse_float=_finite, parse_constant=_no_constant
    )
    layer, depth = [value], 0
    while layer := [inner for one in layer if isinstance(one, list | dict) for inner in _in(one)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError("nested too deep")
    return _in_whole_characters(value)


def _in_whole_characters(value: Plain) -> Plain:
    if isinstance(value, str):
        return _HALVES.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [_in_whole_characters(one) for one in value]
    if isinstance(value, dict):
        return {
            _HALVES.sub("\N{REPLACEMENT CHARACTER}", key): _in_whole_characters(one)
            for key, one in value.items()
        }
    return value


def _in(value: "list[Plain] | dict[str, Plain]") -> Iterable[Plain]:
    return value.values() if isinstance(value, dict) else value


def _types(schema: object, root: object, deepest: int = 8) -> frozenset[str]:
    """The JSON types that a schema allows, as far as it says."""
    if not isinstance(schema, Mapping) or not deepest:
        return frozenset()
    stated = schema.get("type")
    found = {kind for kind in _listed(stated) or [stated] if isinstance(kind, str)}
    parts = [part for union in ("anyOf", "oneOf", "allOf") for part in _listed(schema.get(union))]
    if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#/"):
        target = root
        for step in reference.split("/")[1:]:
            target = target.get(step) if isinstance(target, Mapping) else None
        parts.append(target)
    return frozenset(found).union(*(_types(part, root, deepest - 1) for part in parts))


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _null(text: str) -> None:
    if text != "null":
        raise ValueError(text)


def _boolean(text: str) -> bool:
    match text.lower():  # as Python writes it too, which templates show the model
        case "true":
            return True
        case "false":
            return False
    raise ValueError(text)


def _integer(text: str) -> int:
    if len(text) > LONGEST_NUMBER or not _INTEGER.fullmatch(text):
        raise ValueError("no integer, or too long a one")
    return int(text)


def _finite(text: str) -> float:
    if len(text) > LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        raise ValueError("no number, or too long a one")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("too large a number")
    return value


def _number(text: str) -> int | float:
    return _integer(text) if _INTEGER.fullmatch(text) else _finite(text)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _array(text: str) -> Plain:
    if not isinstance(value := loads(text), list):
        raise ValueError("no array")
    return value


def _object(text: str) -> Plain:
    if not isinstance(value := loads(text), dict):
        raise ValueError("no object")
    return value


# In this order, where a schema allows several: what can only be one thing comes first.
_READERS: Mapping[str, Callable[[str], Plain]] = {
    "null": _null,
    "boolean": _boolean,
    "integer": _integer,
    "number": _number,
    "array": _array,
    "object": _object,
}


def _name(text: str, start: int) -> str | None:
    """The name that stands in `text` from `start` to a `>`.

    "" where none can stand any more, None where its end has not come yet.
    """
    end = text.find(">", start, start + LONGEST_NAME + 1)
    name = text[start : end if end >= 0 else start + LONGEST_NAME + 1]
    if len(name) > LONGEST_NAME or any(character in "<\r\n" for character in name):
        return ""
    return name if end >= 0 else None


def _begun(text: str, marks: Iterable[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a mark."""
    at = text.rfind("<")
    return len(text) - at if at >= 0 and any(mark.startswith(text[at:]) for mark in marks) else 0


def _without_line_breaks(text: str) -> str:
    """A value without the line break at each end that belongs to the format."""
    line_break = "\r\n" if text.startswith("\r\n") else "\n"
    return text.removeprefix(line_break).removesuffix(line_break)


def _json(value: Plain) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
