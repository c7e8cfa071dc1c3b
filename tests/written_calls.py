"""Calls of tools as the Qwen3-Coder models write them."""

import json
from collections.abc import Mapping

from qcn_inference.tool_calls import (
    CALL,
    END_CALL,
    END_FUNCTION,
    END_PARAMETER,
    FUNCTION,
    PARAMETER,
    Plain,
)


def rendered(name: str, arguments: Mapping[str, Plain]) -> str:
    """A call as a model of this family writes it; strings stand as they are.

    What is read back is the same, unless a string holds what ends a value.
    """
    lines = [CALL, f"{FUNCTION}{name}>"]
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines += [f"{PARAMETER}{key}>", text, END_PARAMETER]
    return "\n".join([*lines, END_FUNCTION, END_CALL])
