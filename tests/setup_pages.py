"""The snippets of the set-up pages in `editors/`, which the tests run as they stand there."""

import re
import textwrap
from pathlib import Path

EDITORS = Path(__file__).parents[1] / "editors"


def snippet(page: str, language: str) -> str:
    """Return the only code block of a language in `editors/<page>/README.md`."""
    text = (EDITORS / page / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^( *)```{language}\n(.*?)\n\1```$", text, re.DOTALL | re.MULTILINE)
    return textwrap.dedent(found[1]) + "\n"
