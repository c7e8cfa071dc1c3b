"""From source files to training documents.

A file is one document, or several where it is longer than a document may be: it is then split at
top-level definitions, so that no document is cut by the packing. Some documents are shorter than
they need be and some begin at an arbitrary line, because an editor's prompt is a window around the
cursor.

Each document takes one of these forms (`model-facts`: "Formats the model was trained on"):

* plain text, left to right;
* fill-in-the-middle, suffix-prefix-middle (SPM), the order that completion uses with this model:
  what is typed stands right before what is asked for, which a small model needs, and a typed
  character changes nothing in front of it;
* fill-in-the-middle, prefix-suffix-middle (PSM);

and documents may stand in the repository format, alone or several of one package behind each
other, the last of them in one of the three forms. Middles are cut at character positions and the
parts encoded apart, as at inference (arXiv 2207.14255, section 3).
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from qcn_nano.corpus import Source
from qcn_nano.tokenizer import PlainText

PLAIN_SHARE = 0.2
SPM_SHARE = 0.75  # of the fill-in-the-middle documents
REPOSITORY_SHARE = 0.3  # of the documents that begin a group of several
NAMED_SHARE = 0.5  # of those alone, in the repository format all the same
MAX_GROUP = 5  # documents behind each other in the repository format
ARBITRARY_SPLIT_SHARE = 0.3
SHORTEST_WINDOW = 400  # characters
MAX_MIDDLE = 1200  # characters

# Characters per token assumed before encoding; a document that turns out longer is split again.
CHARACTERS_PER_TOKEN = 2.9

TOP_LEVEL = re.compile(
    r"^(?:@|(?:async def|def|class|if __name__"
    r"|export|async function|function|const|let|var|interface|type)\b)",
    re.MULTILINE,
)


class Cut(NamedTuple):
    """A text around a gap: `prefix + middle + suffix` is the text."""

    prefix: str
    middle: str
    suffix: str


@dataclass(frozen=True)
class Piece:
    """A document before it takes a form: consecutive text of one file."""

    package: str
    path: str
    text: str


def split_source(source: Source, longest: int, rng: random.Random) -> list[Piece]:
    """Consecutive pieces of at most `longest` characters whose texts join to the source's."""
    pieces, start, text = [], 0, source.text
    boundaries = [match.start() for match in TOP_LEVEL.finditer(text)]
    while start < len(text):
        limit = int(SHORTEST_WINDOW * (longest / SHORTEST_WINDOW) ** rng.random() ** 0.5)
        end = len(text)
        if end - start > limit:
            near = [place for place in boundaries if start + limit // 2 <= place <= start + limit]
            if near and rng.random() > ARBITRARY_SPLIT_SHARE:
                end = near[-1]
            else:
                line = text.rfind("\n", start, start + limit) + 1
                end = line if line > start else start + limit
        pieces.append(Piece(source.package, source.path, text[start:end]))
        start = end
    return pieces


def line_spans(text: str) -> list[tuple[int, int]]:
    """Start and end (without the line break) of every line that is not blank."""
    return [match.span() for match in re.finditer(r"[^\n]*\S[^\n]*", text)]


def indented_block(text: str, lines: list[tuple[int, int]], first: int) -> int:
    """The last line of the block that line `first` begins: those at least as far indented."""

    def indent(line: tuple[int, int]) -> int:
        body = text[line[0] : line[1]]
        return len(body) - len(body.lstrip())

    depth, last = indent(lines[first]), first
    while last + 1 < len(lines) and last - first < 12 and indent(lines[last + 1]) >= depth:
        last += 1
    return last


def choose_cut(text: str, rng: random.Random) -> Cut:
    """A gap of the kind that an editor asks to fill."""
    lines = line_spans(text)
    if not lines:
        return Cut(text, "", "")
    kind, at = rng.random(), rng.randrange(len(lines))
    start, end = lines[at]
    indent = len(text[start:end]) - len(text[start:end].lstrip())
    if kind < 0.40:  # the rest of the line, from any character of it
        start = rng.randint(start + indent, end)
    elif kind < 0.60:  # the line after its indentation
        start += indent
    elif kind < 0.75:  # whole lines, from the end of the line above
        start = max(start - 1, 0)
        end = lines[min(at + rng.randint(0, 3), len(lines) - 1)][1]
    elif kind < 0.90:  # a block, after the first line's indentation
        start += indent
        end = lines[indented_block(text, lines, at)][1]
    else:  # any span
        start = rng.randint(start, end)
        end = min(len(text), start + rng.randint(1, 300))
    return Cut(
        text[:start],
        text[start : min(end, start + MAX_MIDDLE)],
        text[min(end, start + MAX_MIDDLE) :],
    )


def encode_form(text: str, plain: PlainText, rng: random.Random) -> list[int]:
    """One document in one of the three forms, ended by `<|endoftext|>`."""
    end = plain.control("<|endoftext|>")
    if rng.random() < PLAIN_SHARE:
        return [*plain.encode(text), end]
    cut = choose_cut(text, rng)
    return [
        *encode_cut(cut, plain, suffix_first=rng.random() < SPM_SHARE),
        *plain.encode(cut.middle),
        end,
    ]


def encode_cut(cut: Cut, plain: PlainText, suffix_first: bool = False) -> list[int]:
    """The fill-in-the-middle prompt of a cut: what stands before the middle."""
    prefix = [plain.control("<|fim_prefix|>"), *plain.encode(cut.prefix)]
    suffix = [plain.control("<|fim_suffix|>"), *plain.encode(cut.suffix)]
    parts = suffix + prefix if suffix_first else prefix + suffix
    return [*parts, plain.control("<|fim_middle|>")]


def encode_header(piece: Piece, plain: PlainText) -> list[int]:
    """`<|file_sep|>{path}\\n`."""
    return [plain.control("<|file_sep|>"), *plain.encode(piece.path + "\n")]


def encode_group(group: list[Piece], plain: PlainText, rng: random.Random) -> list[int]:
    """Pieces of one package, at least one, in the repository format."""
    ids = [plain.control("<|repo_name|>"), *plain.encode(group[0].package + "\n")]
    for piece in group[:-1]:
        ids += encode_header(piece, plain)
        ids += plain.encode(piece.text if piece.text.endswith("\n") else piece.text + "\n")
    return ids + encode_header(group[-1], plain) + encode_form(group[-1].text, plain, rng)


def package_documents(
    sources: list[Source], plain: PlainText, longest: int, rng: random.Random
) -> Iterator[list[int]]:
    """One package's documents, each of at most `longest` tokens; every file is used once."""
    room = int(longest * CHARACTERS_PER_TOKEN)
    pieces = [piece for source in sources for piece in split_source(source, room - 200, rng)]
    at = 0
    while at < len(pieces):
        group = [pieces[at]]
        wanted = rng.randint(2, MAX_GROUP) if rng.random() < REPOSITORY_SHARE else 1
        left = room - 400 - len(group[0].text)
        for piece in pieces[at + 1 : at + wanted]:
            left -= len(piece.text)
            if left <= 0:
                break
            group.append(piece)
        at += len(group)
        yield from fitting_documents(group, plain, longest, rng)


def fitting_documents(
    group: list[Piece], plain: PlainText, longest: int, rng: random.Random
) -> Iterator[list[int]]:
    """The group as one document; as several where its tokens are more than `longest`."""
    named = len(group) > 1 or rng.random() < NAMED_SHARE
    ids = encode_group(group, plain, rng) if named else encode_form(group[0].text, plain, rng)
    if len(ids) <= longest:
        yield ids
        return
    if len(group) > 1:
        halves = [group[: len(group) // 2], group[len(group) // 2 :]]
    else:
        piece, half = group[0], len(group[0].text) // 2
        middle = piece.text.rfind("\n", 0, half) + 1 or half
        halves = [
            [Piece(piece.package, piece.path, text)]
            for text in (piece.text[:middle], piece.text[middle:])
        ]
    for part in halves:
        yield from fitting_documents(part, plain, longest, rng)
