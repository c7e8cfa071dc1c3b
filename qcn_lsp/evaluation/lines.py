"""Lines that use a name which another file of the repository defines.

That is what a repository in front of a completion should help with. A line counts when its file
imports the one file that defines the name, as far as grammars tell (`imports.py` and
`definitions.py` of the indexer), and the name stands in the part that is to be completed.
"""

import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qcn_indexer.definitions import definitions
from qcn_indexer.imports import import_graph

from qcn_lsp.commands.places import Place, places_in

SEED = 20
SHORTEST_NAME = 4  # characters: shorter ones are often another thing of the same name

Texts = Mapping[PurePosixPath, str]

_WORD = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file, from 0, to be completed behind `before` by `rest`, which holds `name`."""

    path: PurePosixPath
    number: int
    before: str
    rest: str
    name: str
    defined_in: PurePosixPath


def lines_with_names_of_others(root: Path, texts: Texts) -> list[Line]:
    """Return all such lines of the files below `root`, the same ones in the same order each time.

    At random, but one of each file before the second of any.
    """
    graph, defined = import_graph(texts), owners(texts)
    chooser = random.Random(SEED)
    ordered: list[tuple[int, float, Line]] = []
    for path in sorted(texts):
        places = places_in(root / path) if graph[path] else []
        found = list(_lines_of(path, texts[path], places, graph[path], defined))
        chooser.shuffle(found)
        ordered += [(turn, chooser.random(), line) for turn, line in enumerate(found)]
    return [line for _, _, line in sorted(ordered, key=lambda one: one[:2])]


def owners(texts: Texts) -> dict[str, PurePosixPath]:
    """Return the names that exactly one file defines, with that file."""
    files: dict[str, set[PurePosixPath]] = defaultdict(set)
    for path, text in texts.items():
        for definition in definitions(path, text):
            for name in definition.names:
                files[name].add(path)
    return {
        name: next(iter(paths))
        for name, paths in files.items()
        if len(paths) == 1 and len(name) >= SHORTEST_NAME
    }


def _lines_of(
    path: PurePosixPath,
    text: str,
    places: Iterable[Place],
    imported: Collection[PurePosixPath],
    defined: Mapping[str, PurePosixPath],
) -> Iterator[Line]:
    lines = text.split("\n")
    for place in places:
        names = (name for name in _WORD.findall(place.rest) if defined.get(name) in imported)
        name = next(names, None)
        # A file with other line ends than the model reads has its lines elsewhere.
        same = place.line < len(lines) and lines[place.line].startswith(place.before + place.rest)
        if name and same:
            yield Line(path, place.line, place.before, place.rest, name, defined[name])
