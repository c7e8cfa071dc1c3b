"""The model's control tokens never reach the user (continue #2953, Qwen3-Coder #543)."""

import re

from qcn_lsp.postprocess.context import Context

# The names of model-facts.md and those of other fill-in-the-middle models, for `engine.url` may
# lead to one of them.
_CONTROL = re.compile(
    r"""<[|\uff5c] (?:
            fim[_\u2581] (?:prefix|middle|suffix|pad|begin|hole|end)
          | repo_name | file_sep | cursor | endoftext | im_start | im_end
          | (?:begin|end)[_\u2581]of[_\u2581]sentence
        ) [|\uff5c]>
      | </?tool_call> | <(?:fim_prefix|fim_middle|fim_suffix|fim_pad|file_sep)>
    """,
    re.VERBOSE,
)
_CUT_SHORT = re.compile(r"<\|(?:fim|repo|file|end|im)_?[a-z_]*\|?\Z")


def without_special_tokens(text: str, context: Context) -> str:
    """Cut at the first control token or undecodable byte: what follows is no completion.

    A last token that was cut short (`<|fim_`) goes too.
    """
    if found := _CONTROL.search(text):
        text = text[: found.start()]
    text = text.partition("\ufffd")[0]
    return _CUT_SHORT.sub("", text)


def control_tokens(text: str) -> frozenset[str]:
    """Return the control tokens that stand in `text`."""
    return frozenset(_CONTROL.findall(text))
