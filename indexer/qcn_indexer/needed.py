"""The definitions that the code at a cursor needs from files which the model does not read.

A name near the cursor that another file defines is worth more than most other text: how it is
called, what it takes. Where that file is not in front of the model as a whole, its definition's
signature is looked up, in the files that the document imports, in what those re-export, and for
languages that have packages by folder, in the folder. The file system is asked, as a compiler does:
an index of all names of a repository would be stale, large, and full of namesakes.

Guarantees:
- Private: only files that the walk lets through, whose text may be read (`read.py`); an open
  buffer's text counts for more than its file, and is held against the secret rules too.
- Bounded: a few dozen files are looked into, their definitions are kept for as long as they are
  what they were, for `FILES_KEPT` files at most; the answer is within `BUDGET` characters.
- Steady: the answer depends on the lines around the cursor, without the word being typed, and is
  the one before as long as that still holds what stands nearest. In front of the document, a change
  in it would cost reading the document anew.
- Each definition is named by its file, in the order of the paths and within a file of its lines.

One call at a time for one instance.
"""

import math
import os
import re
import time
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from qcn_indexer.definitions import Definition, definitions
from qcn_indexer.ignore import UserRules, user_rules
from qcn_indexer.imports import PACKAGE, Import, family_of, imports, resolved
from qcn_indexer.open_files import ShownFile
from qcn_indexer.read import Text, read_text
from qcn_indexer.secrets import looks_secret
from qcn_indexer.walk import Found, walk

BUDGET = 2_000  # characters, about 600 tokens: signatures of one to two dozen functions
LINES_AROUND = 20
CHARACTERS_AROUND = 4_000
MEMBERS = 600  # characters of a class's members, which are shown with it where they are that short
MOST_FILES = 48  # looked into for one cursor
FILES_KEPT = 256
DOCUMENTS_KEPT = 32
LOOK_AGAIN = 10.0  # seconds until an import is resolved again, for files that have come meanwhile
# Where below a folder modules are looked for, beside the folder itself.
_SOURCE_ROOTS = ("", "src", "lib", "include", "src/main/java", "src/main")
_BY_FOLDER = frozenset({"go", "java"})  # what stands in one folder needs no import
_RE_EXPORTING = frozenset({"__init__", "index", "mod", "lib"})
_WORD = re.compile(r"(\.|->|::)?[ \t]*([^\W\d]\w*)")

T = TypeVar("T")
Texts = Mapping[PurePosixPath, str]
Place = tuple[PurePosixPath, int]  # a file, and which of its definitions
Needs = frozenset[tuple[PurePosixPath, Definition]]


@dataclass(frozen=True, slots=True)
class _Document:
    """What a document says without the line being typed, and the files that its imports name."""

    text: int  # its hash
    imports: tuple[Import, ...]
    own: frozenset[str]  # names that it defines itself
    files: tuple[PurePosixPath, ...]
    until: float  # when to resolve the imports again


class NeededDefinitions:
    """Looks up definitions for the documents of one workspace folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._users: UserRules | None = None
        self._kept: OrderedDict[PurePosixPath, Needs] = OrderedDict()
        self._documents: OrderedDict[PurePosixPath, _Document] = OrderedDict()
        self._defined: OrderedDict[PurePosixPath, tuple[object, list[Definition]]] = OrderedDict()

    def near(
        self,
        path: PurePosixPath,
        text: str,
        cursor: int,
        *,
        shown: Container[PurePosixPath],
        buffers: Texts,
    ) -> tuple[ShownFile, ...]:
        """Return what offset `cursor` of the document needs from files that are not `shown`.

        `buffers` are the other open documents.
        """
        if family_of(path) is None:
            return ()
        document = self._document(path, _without_line(text, cursor))
        files = self._defining(document.files, shown, buffers)
        words = _words(text, cursor)
        ranked = _ranked({word: words[word] for word in words.keys() - document.own}, files)
        nearest = _needs(_within(ranked, files, BUDGET // 2), files)
        needs = self._kept.get(path, frozenset())
        if not (nearest <= needs and all(found in files.get(at, ()) for at, found in needs)):
            needs = _needs(_within(ranked, files, BUDGET), files)
        allowed = self._allowed({at for at, _ in needs})
        needs = frozenset((at, found) for at, found in needs if at in allowed)
        _keep(self._kept, path, needs, DOCUMENTS_KEPT)
        return tuple(_texts(needs))

    def _defining(
        self, files: Iterable[PurePosixPath], shown: Container[PurePosixPath], buffers: Texts
    ) -> dict[PurePosixPath, list[Definition]]:
        """The definitions of each file that is looked into."""
        return {
            file: defined
            for file in files
            if file not in shown and (defined := self._of(file, buffers))
        }

    def _document(self, path: PurePosixPath, text: str) -> _Document:
        now, known = time.monotonic(), self._documents.get(path)
        if known is None or known.text != hash(text):
            own = {name for one in definitions(path, text) if not one.depth for name in one.names}
            named = tuple(imports(path, text))
            if known is None or known.imports != named:
                known = _Document(hash(text), named, frozenset(own), (), -math.inf)
            known = replace(known, text=hash(text), own=frozenset(own))
        if now > known.until:
            files = tuple(file for file in self._named(path, known.imports) if file != path)
            known = replace(known, files=files, until=now + LOOK_AGAIN)
        _keep(self._documents, path, known, DOCUMENTS_KEPT)
        return known

    def _named(self, path: PurePosixPath, named: Sequence[Import]) -> Iterator[PurePosixPath]:
        """The files that imports name and the walk lets through, and what those re-export."""
        finder = _Finder(self._root)
        files = dict.fromkeys(finder.files(path, named))
        if family_of(path) in _BY_FOLDER:
            files |= dict.fromkeys(finder.beside(path))
        first = self._allowed(list(files)[:MOST_FILES])
        further: dict[PurePosixPath, None] = {}
        for file in sorted(first):
            found = read_text(self._root / file) if file.stem in _RE_EXPORTING else None
            if isinstance(found, Text):
                further |= dict.fromkeys(finder.files(file, imports(file, found.text)))
        yield from sorted(first | self._allowed(list(further)[:MOST_FILES]))

    def _of(self, path: PurePosixPath, buffers: Texts) -> list[Definition]:
        """The definitions of a file, read again if it is not what it was."""
        buffer = buffers.get(path)
        try:
            status = os.lstat(self._root / path)
            version = (status.st_size, status.st_mtime_ns) if buffer is None else hash(buffer)
        except OSError:
            return []
        known = self._defined.get(path)
        if known is None or known[0] != version:
            text = buffer
            if text is None:
                found = read_text(self._root / path)
                text = found.text if isinstance(found, Text) else ""
            elif looks_secret(path, text):
                text = ""
            known = version, definitions(path, text)
        _keep(self._defined, path, known, FILES_KEPT)
        return known[1]

    def _allowed(self, paths: Iterable[PurePosixPath]) -> set[PurePosixPath]:
        """Those that the walk lets through."""
        self._users = self._users or user_rules(self._root)
        found = walk(self._root, sorted(paths), self._users)
        return {one.path for one in found if isinstance(one, Found)}


class _Finder:
    """Resolves imports by looking; each folder is listed once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[str, dict[str, list[str]]] = {}
        self._known_bases: dict[PurePosixPath, list[tuple[str, ...]]] = {}

    def files(self, importer: PurePosixPath, named: Iterable[Import]) -> Iterator[PurePosixPath]:
        """The files that these imports name."""
        for alternatives in named:
            for name in alternatives:
                if found := list(self._find(name, importer)):
                    yield from found
                    break

    def beside(self, path: PurePosixPath) -> Iterator[PurePosixPath]:
        """The files of the folder that `path` may use without an import."""
        for names in self._names(path.parent.as_posix()).values():
            for name in names:
                if family_of(path.parent / name) == family_of(path):
                    yield path.parent / name

    def _find(self, name: tuple[str, ...], importer: PurePosixPath) -> Iterator[PurePosixPath]:
        if not name:
            return
        if name[0] in {".", ".."}:
            yield from self._at(resolved(importer.parent.parts, name), importer)
            return
        for base in self._bases(importer.parent):
            if found := list(self._at((*base, *name), importer)):
                yield from found
                return

    def _bases(self, folder: PurePosixPath) -> list[tuple[str, ...]]:
        """Where modules may be, the nearest first."""
        if folder not in self._known_bases:
            self._known_bases[folder] = [
                (above / below).parts
                for above in (folder, *folder.parents)
                for below in _SOURCE_ROOTS
                if (self._root / above / below).is_dir()
            ]
        return self._known_bases[folder]

    def _at(self, module: tuple[str, ...], importer: PurePosixPath) -> Iterator[PurePosixPath]:
        """The files of one module: `cache.py`, `cache/__init__.py`, a header and its source."""
        *above, last = module or ("",)
        name = last.removesuffix(PACKAGE)
        if not all(map(_is_name, (*above, name))):
            return
        if name != last:
            yield from self.beside(PurePosixPath(*above, name, importer.name))
            return
        family = family_of(importer)
        for file in self._names("/".join(above)).get(name, ()):
            if family_of(PurePosixPath(file)) == family:
                yield PurePosixPath(*above, file)
        if family == "python":
            for file in self._names("/".join((*above, name))).get("__init__", ()):
                yield PurePosixPath(*above, name, file)

    def _names(self, folder: str) -> dict[str, list[str]]:
        """The files of a folder by their names without suffix; nothing where there is none."""
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            try:
                for name in sorted(os.listdir(self._root / folder)):  # noqa: PTH208 - names alone
                    names.setdefault(PurePosixPath(name).stem, []).append(name)
            except OSError:
                pass  # there is no such folder
            self._listed[folder] = names
        return self._listed[folder]


def _is_name(part: str) -> bool:
    """Whether a part of an import, which may be any text, is a name inside a folder."""
    return part not in {"", ".", ".."} and not set(part) & {"/", "\\", "\0"}


def _without_line(text: str, cursor: int) -> str:
    """The text without the cursor's line, which is being typed."""
    start = text.rfind("\n", 0, cursor) + 1
    end = text.find("\n", cursor)
    return text[:start] + (text[end:] if end >= 0 else "")


def _words(text: str, cursor: int) -> dict[str, tuple[int, bool]]:
    """The names near the cursor, but for the one at it: how many lines away, and if of a member."""
    before = text[max(0, cursor - CHARACTERS_AROUND) : cursor].split("\n")[-LINES_AROUND - 1 :]
    after = text[cursor : cursor + CHARACTERS_AROUND].split("\n")[: LINES_AROUND + 1]
    before[-1] = re.sub(r"\w+\Z", "", before[-1])
    after[0] = re.sub(r"\A\w+", "", after[0])
    words: dict[str, tuple[int, bool]] = {}
    for lines in (reversed(before), after):
        for distance, line in enumerate(lines):
            for found in _WORD.finditer(line):
                nearest, member = words.get(found[2], (distance, False))
                words[found[2]] = min(nearest, distance), member or found[1] is not None
    return words


def _ranked(
    words: Mapping[str, tuple[int, bool]], files: Mapping[PurePosixPath, Sequence[Definition]]
) -> list[Place]:
    """Which definitions the words name, the nearest first; members only where one is spoken of."""
    found = []
    for path, defined in files.items():
        for i, definition in enumerate(defined):
            of_class = definition.depth > 0
            uses = [words[name] for name in definition.names if name in words]
            if distances := [distance for distance, member in uses if member or not of_class]:
                found.append((of_class, min(distances), path, i))
    return [(path, i) for _, _, path, i in sorted(found)]


def _within(
    ranked: Iterable[Place], files: Mapping[PurePosixPath, Sequence[Definition]], budget: int
) -> set[Place]:
    """The first of these that fit, with what stands around each and what a short one holds."""
    chosen: set[Place] = set()
    for path, i in ranked:
        group = {(path, j) for j in (*_around(files[path], i), i, *_held(files[path], i))} - chosen
        size = sum(len(files[at][j].signature) + 1 for at, j in group)
        if size <= budget:
            chosen |= group
            budget -= size
    return chosen


def _around(defined: Sequence[Definition], i: int) -> Iterator[int]:
    """The classes that definition `i` is in."""
    depth = defined[i].depth
    for j in reversed(range(i)):
        if defined[j].depth < depth:
            depth = defined[j].depth
            yield j


def _held(defined: Sequence[Definition], i: int) -> list[int]:
    """The members of definition `i`, if they are short."""
    held = []
    for j in range(i + 1, len(defined)):
        if defined[j].depth <= defined[i].depth:
            break
        held.append(j)
    return held if sum(len(defined[j].signature) for j in held) <= MEMBERS else []


def _needs(chosen: Iterable[Place], files: Mapping[PurePosixPath, Sequence[Definition]]) -> Needs:
    return frozenset((path, files[path][i]) for path, i in chosen)


def _texts(needs: Needs) -> Iterator[ShownFile]:
    lines: dict[PurePosixPath, list[str]] = {}
    for path, found in sorted(needs, key=lambda one: (one[0], one[1].line, one[1].depth)):
        lines.setdefault(path, []).append(found.signature)
    for path, signatures in lines.items():
        yield ShownFile(path, "\n".join((*signatures, "")))


def _keep(kept: OrderedDict[PurePosixPath, T], path: PurePosixPath, value: T, at_most: int) -> None:
    """Keep a value as the one used last, and so many in all."""
    kept[path] = value
    kept.move_to_end(path)
    while len(kept) > at_most:
        kept.popitem(last=False)
