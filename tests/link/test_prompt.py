"""The fill-in-the-middle text for endpoints that read special tokens' strings as the tokens."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from qcn_lsp.engine.messages import CompletionRequest, ContextFile
from qcn_lsp.engine.prompt import STOP_STRINGS, fim_prompt

# Every special token's string of the family's tokenizers that could do harm inside a prompt.
CONTROL = (
    *STOP_STRINGS,
    "<|fim_middle|>",
    "<|im_start|>",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
)
ANY_CONTROL = re.compile("|".join(map(re.escape, CONTROL)))

# Text made of the pieces that could join into such a string.
pieces = st.sampled_from(
    [
        *CONTROL,
        "<|",
        "|>",
        "<",
        ">",
        "|",
        "fim_middle",
        "im_start",
        "</",
        "tool_call",
        "\n",
        "a",
        " ",
    ]
)
source = st.lists(pieces, max_size=12).map("".join)
requests = st.builds(
    CompletionRequest,
    prefix=source,
    suffix=source,
    path=source,
    repo=source,
    extra=st.lists(st.builds(ContextFile, path=source, text=source), max_size=3).map(tuple),
)


@pytest.mark.long
@examples(sample=300, full=5_000)
@given(requests)
def test_the_only_control_tokens_are_the_formats_own(request: CompletionRequest) -> None:
    found = ANY_CONTROL.findall(fim_prompt(request).text)
    files = len(found) - 4
    assert found == [
        "<|repo_name|>",
        *["<|file_sep|>"] * files,
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
    ]
    assert 1 <= files <= 1 + len(request.extra)


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|>"), max_size=60)


@examples(sample=100, full=100)
@given(prefix=plain, suffix=plain, other=plain)
def test_text_without_such_strings_is_sent_as_it_is(prefix: str, suffix: str, other: str) -> None:
    request = CompletionRequest(prefix, suffix, "a.py", "r", extra=(ContextFile("b.py", other),))
    prompt = fim_prompt(request)
    assert prompt.left_out == ()
    assert prompt.text.endswith(f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>")
    assert f"<|file_sep|>b.py\n{other}" in prompt.text


def test_a_name_stays_on_its_line() -> None:
    request = CompletionRequest("", "", "a\nb.py", "r\u2028s")
    assert fim_prompt(request).text == (
        "<|repo_name|>r_s\n<|file_sep|>a_b.py\n<|fim_prefix|><|fim_suffix|><|fim_middle|>"
    )
