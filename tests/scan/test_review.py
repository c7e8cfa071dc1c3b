"""What a model says of a function is taken only in the form that it was asked for."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from qcn_lsp.engine.answers import MalformedAnswer
from qcn_lsp.scan.finding import Proof
from qcn_lsp.scan.review import MOST, Reviewed, findings_in

FUNCTION = "def pay(user, amount):\n    user.balance -= amount\n    return '\U0001f600'\n"
GOOD = {"code": "user.balance -= amount", "cwe": 840, "message": "A negative amount adds money."}


def test_what_is_quoted_is_underlined_as_unconfirmed() -> None:
    [finding] = findings_in(json.dumps([GOOD, GOOD]), FUNCTION)
    assert FUNCTION[finding.start : finding.end] == GOOD["code"]
    assert (finding.cwe, finding.proof) == (840, Proof.UNCONFIRMED)
    assert finding.message == "Unconfirmed: A negative amount adds money."
    assert findings_in("[]", FUNCTION) == ()


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "none",
        "{}",
        "[" * 100_000,
        json.dumps([GOOD] * (MOST + 1)),
        json.dumps([[GOOD]]),
        json.dumps([{**GOOD, "fix": "x"}]),
        json.dumps([{"code": GOOD["code"], "cwe": 1}]),
        *(
            json.dumps([{**GOOD, key: value}])
            for key, value in [
                ("code", "eval(x)"),
                ("code", " "),
                ("code", 7),
                ("cwe", "840"),
                ("cwe", True),
                ("cwe", 0),
                ("cwe", 10**9),
                ("cwe", 8.4),
                ("message", ""),
                ("message", "a\nb"),
                ("message", "a\u202eb"),
                ("message", "a" * 301),
                ("message", None),
            ]
        ),
    ],
)
def test_anything_else_is_refused_as_a_whole(answer: str) -> None:
    with pytest.raises(MalformedAnswer):
        findings_in(answer, FUNCTION)


def test_it_moves_with_its_function_and_goes_when_that_changes() -> None:
    reviewed = Reviewed(FUNCTION, findings_in(json.dumps([GOOD]), FUNCTION))
    text = "# \U0001f600\n" + FUNCTION + "x = 1\n"
    [finding] = reviewed.at(text)
    assert text[finding.start : finding.end] == GOOD["code"]
    assert reviewed.at(text.replace("amount)", "amount=1)")) == ()
    assert reviewed.at(FUNCTION * 2) == ()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@pytest.mark.long
@examples(sample=100, full=1000)
@given(items=st.lists(st.fixed_dictionaries({"code": VALUES, "cwe": VALUES, "message": VALUES})))
def test_no_answer_underlines_what_is_not_there(items: list[dict[str, Any]]) -> None:
    try:
        found = findings_in(json.dumps(items), FUNCTION)
    except MalformedAnswer:
        return
    for finding in found:
        assert 0 <= finding.start < finding.end <= len(FUNCTION)
