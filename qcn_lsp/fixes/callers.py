"""What the repository says of a function: where it is called, and what it uses.

Private: only files that the walk lets through and whose text may be read are looked into. Bounded:
so many files, so much time, so many characters.
"""

import re
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath

from qcn_indexer.enclosing import function_around
from qcn_indexer.imports import family_of
from qcn_indexer.needed import NeededDefinitions
from qcn_indexer.read import Text, read_text
from qcn_indexer.secrets import looks_secret
from qcn_indexer.tree import tree_of
from qcn_indexer.walk import Found, walk

from qcn_lsp.fixes.candidate import Subject
from qcn_lsp.fixes.place import Place, place_of
from qcn_lsp.fixes.prompt import Surroundings

MOST_FILES = 2_000
SECONDS = 2.0
CALLERS = 3
LONGEST = 1_500  # characters of one caller


def surroundings(
    root: Path, subject: Subject, buffers: Mapping[PurePosixPath, str]
) -> Surroundings:
    """Return the callers and the definitions of what is to be fixed; `buffers` are open texts.

    Reads files: for a worker thread.
    """
    place = place_of(subject, tree_of(subject.path, subject.text))
    needed = NeededDefinitions(root).near(
        subject.path, subject.text, subject.finding.start, shown=(), buffers=buffers
    )
    return Surroundings(
        callers=tuple(_callers(root, subject, place, buffers)),
        definitions=tuple((str(file.path), file.text) for file in needed),
    )


def _callers(
    root: Path, subject: Subject, place: Place, buffers: Mapping[PurePosixPath, str]
) -> Iterator[tuple[str, str]]:
    """The functions that call the place's, the file's own first."""
    if not place.name:
        return
    name = re.split(r"\.|::", place.name)[-1]
    call, found = re.compile(rf"\b{re.escape(name)}\s*\("), 0
    own = subject.text[: place.start] + " " * (place.end - place.start) + subject.text[place.end :]
    until = time.monotonic() + SECONDS
    for path, text in chain([(subject.path, own)], _others(root, subject.path, buffers)):
        if found >= CALLERS or time.monotonic() > until:
            return
        for shown in _calling(path, text, call):
            found += 1
            yield str(path), shown


def _others(
    root: Path, own: PurePosixPath, buffers: Mapping[PurePosixPath, str]
) -> Iterator[tuple[PurePosixPath, str]]:
    """The texts of other files in the language's family that a model may see."""
    family, count = family_of(own), 0
    for one in walk(root):
        if not isinstance(one, Found) or one.path == own or family_of(one.path) != family:
            continue
        count += 1
        if count > MOST_FILES:
            return
        text = buffers.get(one.path)
        if text is None:
            read = read_text(root / one.path)
            text = read.text if isinstance(read, Text) else ""
        elif looks_secret(one.path, text):
            continue
        yield one.path, text


def _calling(path: PurePosixPath, text: str, call: "re.Pattern[str]") -> Iterator[str]:
    """The function around the first call in a text, or the call's line."""
    found = call.search(text)
    if found is None:
        return
    around = function_around(path, text, found.start(), found.start())
    if around is not None and around.end - around.start <= LONGEST:
        yield text[around.start : around.end]
    else:
        line = text.rfind("\n", 0, found.start()) + 1
        yield text[line:].partition("\n")[0][:LONGEST]
