"""Python's own reading of a text."""

import ast
import warnings


def python_module(text: str) -> ast.Module | None:
    """Return Python's own tree, or None where Python does not read the text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in somebody's strings
        try:
            return ast.parse(text.removeprefix("\ufeff"))  # which Python passes over in files
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
