"""One file of ignore rules, and what it says of a path, as git would.

pathspec turns a pattern into a regular expression. It differs from git in what a line holds
besides plain names (tried with pathspec 1.1.1 and git 2.39), so each line is first rewritten into
one that both read the same way:

- POSIX classes, escapes, ranges that run backwards and unknown classes: a bracket becomes the list
  of the bytes it matches, never a slash;
- a run of stars is `**` only when it fills a segment, of whatever length; right after a pattern's
  literal beginning git takes `a**/b` for `a` and then `**/b`, whatever its manual says;
- only spaces are trimmed at the end, not tabs, nor bytes that are blanks in Latin-1;
- `a/**` is what lies below `a`, not `a` itself;
- a trailing backslash, an unclosed bracket and an empty segment match nothing.

Names are bytes, as git sees them: `?` is one byte of a name in UTF-8. Each path is judged by
itself; that nothing below an ignored folder comes back is for whoever walks. `tests/indexer/
test_ignore.py` compares with git's own answers, the deciding line included.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

# Of runs of two stars or more, in a pattern for paths. Real patterns have one or two. Each
# multiplies the ways to match a path, so a hostile file could keep a processor busy for hours.
MAX_STAR_RUNS = 3

_CLASSES = {
    b"alnum": rb"[a-zA-Z0-9]",
    b"alpha": rb"[a-zA-Z]",
    b"blank": rb"[ \t]",
    b"cntrl": rb"[\x00-\x1f\x7f]",
    b"digit": rb"[0-9]",
    b"graph": rb"[!-~]",
    b"lower": rb"[a-z]",
    b"print": rb"[ -~]",
    b"punct": rb"[!-/:-@\[-`{-~]",
    b"space": rb"[ \t-\r]",
    b"upper": rb"[A-Z]",
    b"xdigit": rb"[0-9a-fA-F]",
}
_ITEM = rb"\[:[^\]]*:\]|(?:\\.|[^\\\]])(?:-(?:\\.|[^\\\]]))?+"
_FIRST_ITEM = rb"\[:[^\]]*:\]|(?:\\.|[^\\])(?:-(?:\\.|[^\\\]]))?+"
_ITEMS = re.compile(
    rb"\[:(?P<class>[^\]]*):\]|\\?(?P<low>(?<=\\).|[^\\])(?:-\\?(?P<high>(?<=\\).|[^\\\]]))?", re.S
)
_TOKEN = re.compile(
    rb"(?P<escaped>\\.)"
    rb"|\[(?P<negated>[!^]?+)(?P<items>(?>" + _FIRST_ITEM + rb")(?>" + _ITEM + rb")*+)\]"
    rb"|(?P<segment>(?<![^/])\*+(?=/|\\/|\Z))"
    rb"|(?P<stars>\*+)"
    rb"|(?P<broken>[\[\\])"
    rb"|(?P<plain>.)",
    re.S,
)
_LITERAL_THEN_STARS = re.compile(rb"([^*?\[\\]*[^*?\[\\/])\*\*+(?:(\\?/)(.*))?\Z", re.S)
_WITHOUT_TRAILING_SPACES = re.compile(rb"((?:\\.|[^\\])*?) *\Z", re.S)
# What stands between two stars is found at its first place or not at all, so no way back need be
# kept: without this, `*a*a*a*a*b` costs the fourth power of a name's length.
_BETWEEN_STARS = re.compile(
    rb"\[\^/\]\*((?:(?!\[\^/\]\*)(?:\[\]?[^\]]+\]|\\.|[^/()\[\\]))+)(?=\[\^/\]\*)", re.S
)


class UnreadableRulesError(Exception):
    """Rules that cannot be known, so that it cannot be known either what they keep private."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line: what it matches, on names alone or on paths, and whether it ignores or keeps."""

    line: int
    ignores: bool
    on_names: bool
    matches: re.Pattern[bytes]


class Rules:
    """The rules of one file, for paths relative to the folder they hold for."""

    def __init__(self, source: str, text: bytes, *, ignore_case: bool = False) -> None:
        """Read `text`; `source` says where it came from. Raise `UnreadableRulesError`."""
        self.source = source
        self._last_first = tuple(_read(text, ignore_case=ignore_case))[::-1]
        self._on_names = _any_of([rule for rule in self._last_first if rule.on_names])
        self._on_paths = _any_of([rule for rule in self._last_first if not rule.on_names])

    def last_match(self, path: bytes) -> Rule | None:
        """Return the rule that decides on `path`, which ends in a slash if it is a folder's."""
        name = path[path.rfind(b"/", 0, -1) + 1 :]
        if not self._on_names.fullmatch(name) and not self._on_paths.fullmatch(path):
            return None
        return next(
            rule
            for rule in self._last_first
            if rule.matches.fullmatch(name if rule.on_names else path)
        )


def _any_of(rules: list[Rule]) -> re.Pattern[bytes]:
    """Return one expression for all: most paths match none, and are told so by one question."""
    nothing = rb"(?!)"
    alternatives = b"|".join(b"(?:%b)" % rule.matches.pattern for rule in rules)
    return re.compile(alternatives or nothing, rules[0].matches.flags if rules else 0)


def _read(text: bytes, *, ignore_case: bool) -> Iterator[Rule]:
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
    for number, line in enumerate(text.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.startswith(b"#"):
            continue
        trimmed = _WITHOUT_TRAILING_SPACES.match(line.removesuffix(b"\r").partition(b"\0")[0])
        pattern = trimmed.group(1) if trimmed else b""
        kept = pattern.startswith(b"!")
        pattern = pattern[kept:]
        on_names = b"/" not in pattern[:-1]
        for rewritten in _rewritten(pattern, on_names=on_names, ignore_case=ignore_case):
            regex, _ = GitIgnoreSpecPattern.pattern_to_regex(rewritten)
            if regex is not None:
                regex = _BETWEEN_STARS.sub(rb"(?>[^/]*?\1)", regex.replace(b"?P<ps_d>", b"?:"))
                yield Rule(number, not kept, on_names, re.compile(regex, flags))


def _rewritten(pattern: bytes, *, on_names: bool, ignore_case: bool) -> Iterator[bytes]:
    """Yield lines that pathspec reads as git reads this one; none if it matches nothing."""
    folder = b"/" if pattern.endswith(b"/") else b""
    if not on_names and len(re.findall(rb"\*\*+", pattern)) > MAX_STAR_RUNS:
        raise UnreadableRulesError("a pattern has too many `**`")
    for body in _without_glued_stars(pattern.removesuffix(b"/").removeprefix(b"/"), on_names):
        pieces = [_piece(token, on_names, ignore_case) for token in _TOKEN.finditer(body)]
        if pieces and None not in pieces:
            yield b"/" + b"".join(piece for piece in pieces if piece is not None) + folder


def _without_glued_stars(body: bytes, on_names: bool) -> list[bytes]:
    """Return patterns that say `a`, anything, `/b` for git's reading of `a**/b`."""
    glued = None if on_names else _LITERAL_THEN_STARS.match(body)
    if glued is None:
        return [body]
    literal, slash, rest = glued.groups()
    if slash is None:
        return [literal + b"*", literal + b"*/**"]
    return [*_without_glued_stars(literal + rest, on_names), literal + b"*/**/" + rest]


def _piece(token: re.Match[bytes], on_names: bool, ignore_case: bool) -> bytes | None:
    kind = token.lastgroup
    if kind == "broken":
        return None
    if kind == "items":
        members = _members(token["items"], ignore_case)
        if members is None:
            return None
        return _bracket(set(range(1, 256)) - members if token["negated"] else members)
    if kind == "segment":
        return _star_segment(token, on_names)
    if kind == "stars":
        return b"*"
    byte = token[0][-1:]
    if byte == b"/" or (byte == b"?" and kind == "plain"):
        return byte
    if byte.decode("latin-1").isspace():  # pathspec would take it for the end of the line
        return _bracket({byte[0]})
    return b"\\" + byte if byte in b"\\[]*?" else byte


def _star_segment(token: re.Match[bytes], on_names: bool) -> bytes:
    """Write `?*` for "any name": pathspec shortens a lone `*` into what matches far more."""
    if on_names or len(token[0]) == 1:
        return b"?*"
    return b"**/?*" if token.end() == len(token.string) else b"**"


def _members(items: bytes, ignore_case: bool) -> set[int] | None:
    """Return the bytes in a bracket, or None if it names a class that does not exist."""
    members: set[int] = set()
    for item in _ITEMS.finditer(items):
        if item["class"] is not None:
            if item["class"] not in _CLASSES:
                return None
            found = re.findall(_CLASSES[item["class"]], bytes(range(256)))
            members.update(byte[0] for byte in found)
        else:
            low, high = item["low"][0], (item["high"] or item["low"])[0]
            members.update([low], range(low, high + 1))  # `[b-a]` matches `b`
    if ignore_case:
        members.update(bytes(members).lower() + bytes(members).upper())
    return members


def _bracket(members: set[int]) -> bytes:
    """Write a bracket that both pathspec and the regular expression read as these bytes alone.

    Neither takes escapes inside: `]` must be first, `-` last, and `!` and `^` not first, for which
    a NUL, which no name holds, stands in front.
    """
    start, end = b"]" if ord("]") in members else b"\0", b"-" if ord("-") in members else b""
    middle = bytes(sorted(members - set(b"]-/\0")))
    return b"[" + start + middle + end + b"]"
