"""Text of a model as a preview may show it: nothing is fetched, nothing is hidden."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from qcn_lsp.features.actions.reading import inert
from qcn_lsp.postprocess.hidden import hidden_characters

IMAGE = "![x](https://a.test/?q=secret)"
PIECES = st.sampled_from(
    (
        *(IMAGE, "<img src='https://a.test'>", "`", "``", "```", "~~~", "\n", "\n\n", " ", "   "),
        *("    ", "\\", "- ", "> ", "1. ", "a", "<", "!", "[", "](u)", "-->", "<!--", "\u202e"),
        *("\t", "&lt;", "|", "|-|-|"),
    )
)


@given(st.lists(PIECES).map("".join))
@example(f"\\`{IMAGE}`")  # the first mark is no mark
@example(f"- a\n  ```\n  b\n\nc\n{IMAGE}\n```\n")  # the list ends its fence
@example(f"  ```\nx\n```\n{IMAGE}\n")
@example(f"> ```\n{IMAGE}\n> ```\n")
@example(f"```\nx\n{IMAGE}")
def test_whatever_is_written_nothing_is_fetched(text: str) -> None:
    shown = inert(text)
    assert not hidden_characters(shown)
    for flavour in ("commonmark", "js-default"):
        for token in MarkdownIt(flavour, {"html": True}).parse(shown):
            for one in (token, *(token.children or ())):
                assert one.type not in ("image", "html_block", "html_inline")


@pytest.mark.parametrize(
    "text",
    [
        "It is a `List<T>`, see `![x](y)`.\n",
        "```html\n<img src='a'>\n![x](y)\n```\n",
        "1 < 2, and [a link](https://a.test).\n",
        "~~~\n<b>\n~~~\n",
    ],
)
def test_code_is_shown_as_it_is(text: str) -> None:
    assert inert(text) == text
