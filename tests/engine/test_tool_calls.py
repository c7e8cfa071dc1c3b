"""Calls of tools in a model's answer: what is read, and that it is data wherever it is cut."""

import codecs
import json
import math
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from qcn_inference.tool_calls import (
    DEEPEST,
    Arguments,
    Call,
    Event,
    Plain,
    Text,
    Tool,
    ToolCallParser,
)
from sampling import count, examples
from written_calls import rendered

SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "line": {"type": "integer"},
        "share": {"type": "number"},
        "force": {"type": "boolean"},
        "tags": {"type": "array"},
        "options": {"$ref": "#/$defs/Options"},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "note": {"type": ["string", "null"]},
    },
    "$defs": {"Options": {"type": "object"}},
}
TOOLS = {"edit": Tool.of("edit", SCHEMA), "ls": Tool.of("ls", {})}


def call(name: str, *parameters: tuple[str, str], end: str = "</function>\n</tool_call>") -> str:
    inner = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in parameters)
    return f"<tool_call>\n<function={name}>\n{inner}{end}"


def outcome(events: Iterable[Event]) -> tuple[str, list[tuple[str, str]]]:
    """The text, and of each call the name and the JSON of its arguments."""
    text, calls = "", list[tuple[str, str]]()
    for event in events:
        match event:
            case Text(more):
                text += more
            case Call(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case Arguments(index, more):
                name, arguments = calls[index]
                calls[index] = name, arguments + more
    return text, calls


def read(
    pieces: Iterable[str], *, complete: bool = True, tools: dict[str, Tool] = TOOLS
) -> tuple[str, list[tuple[str, str]]]:
    parser = ToolCallParser(tools)
    events = [event for piece in pieces for event in parser.push(piece)]
    return outcome([*events, *parser.finish(complete=complete)])


def calls_in(text: str, **how: Any) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments in read([text], **how)[1]]


def test_text_and_calls_are_told_apart() -> None:
    answer = f"I look.\n\n{call('ls')}\n{call('edit', ('path', 'a.py'), ('line', '3'))}\n"
    assert read([answer]) == (
        "I look.",
        [("ls", "{}"), ("edit", '{"path": "a.py", "line": 3}')],
    )


def test_an_answer_without_a_call_stays_as_it_is() -> None:
    text = "\n a <tool_call> is opened so: `<function=name>`, and `<tool_call` is not.\n "
    assert read([text]) == (text, [])


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("path", "null", "null"),
        ("path", "3", "3"),
        ("path", "\n a\n\n", "\n a\n\n"),
        ("path", "a</function>\nb", "a</function>\nb"),
        ("path", "a <parameter=line>", "a <parameter=line>"),
        ("path", "a\n<parameter=unknown>\nb", "a\n<parameter=unknown>\nb"),
        ("line", "-12", -12),
        ("line", "1.5", "1.5"),
        ("line", "9" * 400, int("9" * 400)),
        ("line", "9" * 401, "9" * 401),
        ("line", "__import__('os')", "__import__('os')"),
        ("line", "\u0661", "\u0661"),
        ("share", "0.5", 0.5),
        ("share", "2", 2),
        ("share", "NaN", "NaN"),
        ("share", "1e999", "1e999"),
        ("force", "True", True),
        ("force", "false", False),
        ("force", "1", "1"),
        ("tags", '["a", 1, null]', ["a", 1, None]),
        ("tags", '{"a": 1}', '{"a": 1}'),
        ("tags", "[NaN]", "[NaN]"),
        ("tags", f"[{'9' * 5000}]", f"[{'9' * 5000}]"),
        ("tags", "['a']", "['a']"),
        ("tags", "[" * 100_000, "[" * 100_000),
        ("tags", "[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "[" * 66 + "]" * 66),
        ("tags", r'["\ud800"]', ["\ufffd"]),
        ("options", r'{"\udfff": ["\ud83d\ude00"]}', {"\ufffd": ["\U0001f600"]}),
        ("options", '{"a": {"b": [1]}}', {"a": {"b": [1]}}),
        ("limit", "null", None),
        ("limit", "7", 7),
        ("note", "null", None),
        ("note", "nothing", "nothing"),
        ("unknown", "3", "3"),
    ],
)
def test_a_value_is_what_the_schema_says_or_text(key: str, text: str, value: Plain) -> None:
    assert calls_in(call("edit", (key, text))) == [("edit", {key: value})]


@pytest.mark.parametrize(
    "answer",
    [
        "<tool_call>\n<function=edit>\n<parameter=path>\na\n<parameter=line>\n1\n</parameter>\n"
        "</function>\n</tool_call>",
        "<tool_call>\n<function=edit>\n<parameter=path>\na\n</parameter>\n<parameter=line>\n1\n"
        "</function>\n</tool_call>",
        call("edit", ("path", "a"), ("line", "1"), end="</function>"),
        call("edit", ("path", "a"), ("line", "1"), end="</tool_call>"),
        call("edit", ("path", "a"), ("line", "1"), end=""),
        "<tool_call><function=edit><parameter=path>a</parameter><parameter=line>1",
        call("edit", ("path", "a"), ("line", "1")).removeprefix("<tool_call>\n"),
        call("edit", ("path", "a"), ("line", "1")).replace("\n", "\r\n"),
        call("edit", ("path", "a"), ("line", "1"), ("path", "b")),
        call("edit", ("path", "a"), ("line", "1")).replace(
            "<parameter=line", "and <parameter=line"
        ),
    ],
    ids=[
        "parameter left open",
        "last parameter left open",
        "call left open",
        "function left open",
        "both left open",
        "nothing closed",
        "call not opened",
        "line ends of Windows",
        "one given twice",
        "text between",
    ],
)
def test_what_a_model_leaves_out_is_understood(answer: str) -> None:
    assert calls_in(answer) == [("edit", {"path": "a", "line": 1})]


def test_behind_a_call_that_was_left_open_another_begins() -> None:
    answer = "<tool_call>\n<function=ls>\n" + call("edit", ("line", "1"))
    assert calls_in(answer) == [("ls", {}), ("edit", {"line": 1})]


def test_an_unknown_function_is_called_with_text() -> None:
    assert calls_in(call("rm", ("line", "1"))) == [("rm", {"line": "1"})]


def test_a_call_that_the_limit_cuts_short_is_left_open() -> None:
    answer = call("edit", ("path", "a"), ("line", "12"))
    cut = answer[: answer.index("2")]
    assert read([cut], complete=False) == ("", [("edit", '{"path": "a"')])


FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "<function=edit>",
    "<function=rm>",
    "</function>",
    "<parameter=",
    "<parameter=path>",
    "<parameter=line>",
    "<parameter=tags>",
    "<parameter=note>",
    "</parameter>",
    "\n",
    "\n<parameter=share>",
    " ",
    "<",
    ">",
    "</",
    "null",
    "12",
    "[1, [NaN]]",
    '{"a": "b"}',
    "é",
    "日本",
    "x",
    "text",
    '"',
    "\\",
    "\r\n",
    "eval('1')",
    "n" * 300,
]


def fuzzed(draw: random.Random) -> str:
    """An answer that is nearly one, or none at all."""
    if draw.random() < 0.5:
        return "".join(draw.choices(FRAGMENTS, k=draw.randint(0, 14)))
    keys = draw.sample([*SCHEMA["properties"]], draw.randint(0, 3))
    text = call("edit", *((key, "".join(draw.choices(FRAGMENTS, k=2))) for key in keys))
    for _ in range(draw.randint(0, 3)):
        at, length = draw.randrange(len(text)), draw.randint(0, 12)
        text = text[:at] + draw.choice([*FRAGMENTS, ""]) + text[at + length :]
    return draw.choice(["", "I look.\n"]) + text


def by_bytes(text: str) -> list[str]:
    """The text as a stream of single bytes gives it out."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(bytes([byte])) for byte in text.encode()]


def assert_plain(value: object) -> None:
    """Only data that JSON can write."""
    if type(value) is dict:
        assert all(type(key) is str for key in value)
        for inner in value.values():
            assert_plain(inner)
    elif type(value) is list:
        for inner in value:
            assert_plain(inner)
    else:
        assert value is None or type(value) in (bool, int, float, str)
        assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_any_answer_is_data_and_the_same_wherever_it_is_cut(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(count(sample=100, full=600)):
        text, complete = fuzzed(draw), draw.random() < 0.7
        whole = read([text], complete=complete)
        assert read(by_bytes(text), complete=complete) == whole, text
        at = draw.randint(0, len(text))
        assert read([text[:at], text[at:]], complete=complete) == whole, text
        for number, (_, arguments) in enumerate(whole[1], 1):
            if complete or number < len(whole[1]):
                value = json.loads(arguments)
                assert type(value) is dict
                assert_plain(value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "path": st.text(st.characters(codec="utf-8")),
        "line": st.integers(-(10**30), 10**30),
        "share": st.floats(allow_nan=False, allow_infinity=False),
        "force": st.booleans(),
        "tags": st.lists(json_values, max_size=3),
        "options": st.dictionaries(st.text(), json_values, max_size=3),
        "limit": st.none() | st.integers(),
    },
)


@pytest.mark.long
@examples(sample=100, full=2000)
@given(arguments)
def test_what_is_rendered_is_read_back(values: dict[str, Plain]) -> None:
    text = rendered("edit", values)
    assume(text.count("</parameter>") == len(values))
    assert calls_in(text) == [("edit", values)]
