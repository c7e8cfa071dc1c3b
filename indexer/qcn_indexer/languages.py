"""The language of a file by its name: Pygments' table, with the identifiers that editors use.

Pygments lists the names and endings of more than 500 languages. Only its table is read, no lexer is
loaded, and that not before the first question. Where several languages claim an ending, the one
meant most often is set here; for the others the first in Pygments' order stands.
"""

import re
from dataclasses import dataclass, field
from fnmatch import translate
from functools import cache

# Pygments' name of a language -> the language server protocol's, or that of VS Code's extension.
_IDENTIFIERS = {
    "bash": "shellscript",
    "batch": "bat",
    "cr": "crystal",
    "delphi": "pascal",
    "docker": "dockerfile",
    "html+handlebars": "handlebars",
    "make": "makefile",
    "nimrod": "nim",
    "nixos": "nix",
    "objective-c++": "objective-cpp",
    "octave": "matlab",
    "pycon": "python",
    "splus": "r",
    "tex": "latex",
    "text": "plaintext",
    "vb.net": "vb",
    "xslt": "xsl",
}
_ENDINGS = {
    ".as": "actionscript",
    ".asm": "nasm",
    ".astro": "astro",
    ".bas": "vb",
    ".cl": "opencl",
    ".cp": "cpp",
    ".cshtml": "razor",
    ".cts": "typescript",
    ".dockerfile": "dockerfile",
    ".feature": "gherkin",
    ".fs": "fsharp",
    ".g": "antlr",
    ".gd": "gdscript",
    ".gitignore": "ignore",
    ".glsl": "glsl",
    ".h": "c",
    ".hh": "cpp",
    ".inc": "php",
    ".inf": "ini",
    ".jsonc": "jsonc",
    ".jsx": "javascriptreact",
    ".lean": "lean4",
    ".m": "objective-c",
    ".mm": "objective-cpp",
    ".mts": "typescript",
    ".pl": "perl",
    ".pm": "perl",
    ".pro": "prolog",
    ".prolog": "prolog",
    ".r": "r",
    ".razor": "razor",
    ".s": "gas",
    ".sc": "scala",
    ".sql": "sql",
    ".svelte": "svelte",
    ".t": "perl",
    ".toc": "latex",
    ".tsx": "typescriptreact",
    ".ttl": "turtle",
    ".v": "verilog",
    ".vue": "vue",
    ".xsl": "xsl",
    ".xslt": "xsl",
}
_NAMES = {
    ".dockerignore": "ignore",
    ".gitattributes": "properties",
    ".ignore": "ignore",
    ".npmignore": "ignore",
    ".qcnignore": "ignore",
    "Jenkinsfile": "groovy",
    "go.mod": "go.mod",
    "go.work": "go.work",
}


@dataclass(frozen=True, slots=True)
class _Table:
    names: dict[str, str] = field(default_factory=lambda: dict(_NAMES))
    endings: dict[str, str] = field(default_factory=lambda: dict(_ENDINGS))
    others: list[tuple[re.Pattern[str], str]] = field(default_factory=list)
    usual: dict[str, str] = field(default_factory=dict)  # by language: an ending


def language_of(name: str) -> str | None:
    """Return the language of a file of this name, as an editor calls it, or None."""
    table = _table()
    if language := table.names.get(name):
        return language
    dots = [place for place, letter in enumerate(name) if letter == "."]
    for ending in (name[place:] for place in dots):
        if language := table.endings.get(ending) or table.endings.get(ending.lower()):
            return language
    return next((language for shape, language in table.others if shape.match(name)), None)


def ending_of(language: str) -> str | None:
    """Return the usual ending of files in a language, as `.py`, or None where no ending means it.

    Pygments lists the usual one first.
    """
    return _table().usual.get(language)


def languages() -> frozenset[str]:
    """Return every language that `language_of` can name."""
    table = _table()
    others = (language for _, language in table.others)
    return frozenset(table.names.values()) | frozenset(table.endings.values()) | frozenset(others)


@cache
def _table() -> _Table:
    from pygments.lexers import get_all_lexers

    table = _Table()
    for title, aliases, patterns, _ in get_all_lexers(plugins=False):
        language = aliases[0] if aliases else title.lower()
        language = _IDENTIFIERS.get(language, language)
        for pattern in patterns:
            if not re.search(r"[*?\[]", pattern):
                table.names.setdefault(pattern, language)
            elif re.fullmatch(r"\*(\.[^*?\[]+)", pattern):
                if table.endings.setdefault(pattern[1:], language) == language:
                    table.usual.setdefault(language, pattern[1:])
            else:
                table.others.append((re.compile(translate(pattern)), language))
    for ending, language in _ENDINGS.items():
        table.usual.setdefault(language, ending)
    return table
