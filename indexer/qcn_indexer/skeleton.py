"""The signatures of a file: what its definitions are called and take, without their bodies.

By indentation and regular expressions, for the languages most often met: enough to know what to
call, not a parse. A definition in a string or a comment is taken for one; an unusual layout may
hide one. Tree-sitter grammars would do both better and may replace this module; the interface
stays.

A language that is not known has no skeleton: the empty string.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

LONGEST_SIGNATURE = 12  # lines: one that is never closed (in a string, say) ends there

_PYTHON = r"\s*(?:async\s+def|def|class)\s+\w"
_SCRIPT = (
    r"\s*(?:export\s+)?(?:default\s+)?(?:declare\s+)?(?:abstract\s+)?(?:async\s+)?"
    r"(?:function\b|(?:class|interface|type|enum|namespace)\s+\w)"
    r"|\s*export\s+(?:const|let|var)\s+\w"
    r"|\s+(?:(?:public|private|protected|static|async|readonly|override|get|set)\s+)*"
    r"(?!(?:if|for|while|switch|catch|return|function|with)\b)[\w$#]+\s*(?:<[^>()]*>)?"
    r"\([^;]*(?:\{|\(|,)\s*$"
)
_JAVA = (
    r"\s*(?:(?:public|private|protected|internal|static|final|abstract|sealed|partial|override|"
    r"synchronized|default|async|virtual)\s+)*(?:class|interface|enum|record|struct|namespace)\s+\w"
    r"|\s+(?:(?:public|private|protected|internal|static|final|abstract|override|synchronized|"
    r"async|virtual)\s+)+[^=;]*\("
)
_C = (
    r"(?:typedef\s+)?(?:struct|class|enum|union|namespace|template)\b"
    r"|(?!(?:return|else|if|for|while|switch|goto|case)\b)[A-Za-z_][\w\s*&:<>,~]*\([^=]*$"
)
_DEFINITIONS = {
    suffix: re.compile(pattern)
    for suffixes, pattern in (
        (".py .pyi", _PYTHON),
        (".js .jsx .mjs .cjs .ts .tsx .mts .cts", _SCRIPT),
        (".go", r"(?:func|type)\s"),
        (".java .cs", _JAVA),
        (".c .h .cc .cpp .cxx .hh .hpp .hxx .cu .cuh", _C),
        (
            ".rs",
            r"\s*(?:pub(?:\([^)]*\))?\s+)?(?:(?:async|unsafe|const|default|extern\s+\"C\")\s+)*"
            r"(?:(?:fn|struct|enum|trait|mod|type|union)\s+\w|impl\b)",
        ),
        (".rb", r"\s*(?:def|class|module)\s+\w"),
    )
    for suffix in suffixes.split()
}


def skeleton(path: PurePosixPath, text: str) -> str:
    """Return the signature lines of `text`, or the empty string where there are none."""
    definition = _DEFINITIONS.get(path.suffix.casefold())
    if definition is None:
        return ""
    lines = text.splitlines()
    kept = [line for start in _starts(lines, definition) for line in _signature(lines, start)]
    return "\n".join((*kept, "")) if kept else ""


def _starts(lines: Sequence[str], definition: re.Pattern[str]) -> Iterator[int]:
    return (i for i, line in enumerate(lines) if definition.match(line))


def _signature(lines: Sequence[str], start: int) -> Iterator[str]:
    """The lines until the parentheses are closed, the last one without what opens the body."""
    depth = 0
    for line in lines[start : start + LONGEST_SIGNATURE]:
        depth += line.count("(") - line.count(")")
        if depth <= 0:
            yield line.rstrip().removesuffix("{").rstrip()
            return
        yield line.rstrip()
