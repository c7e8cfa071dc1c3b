"""Which files of a root import which, by regular expressions: cheap, and good enough to rank by.

Covers Python, JavaScript and TypeScript, Go, Java, C and C++, Rust, and Ruby. An import is
resolved to files of the root by its path's end, since where a language looks for its modules
(source roots, `tsconfig` paths, Go modules, crates) is set in files that we do not read: of several
files that fit, the nearest one to the importer is taken. What is not found in the root is another
project's.

Failure modes, all harmless to a ranking: an import in a comment counts; a name that another project
owns may fit a file of the root.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath

Graph = Mapping[PurePosixPath, frozenset[PurePosixPath]]
# What an import says: alternatives, the first of which that is found counts, each as the parts of a
# path without its suffix. A leading "." or ".." starts at the importer's folder.
Names = Iterator[tuple[tuple[str, ...], ...]]

_PY = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<dots>\.*)(?P<module>[\w.]*)[ \t]+import[ \t]+"
    r"(?P<names>\([^)]*\)|[^\n#;]+)|import[ \t]+(?P<modules>[^\n#;]+))",
    re.MULTILINE,
)
_JS = re.compile(
    r"""(?:\bfrom|\bimport|\brequire\s*\(|\bimport\s*\()\s*['"](?P<name>\.[^'"\n]*)['"]"""
)
_GO = re.compile(
    r"""^\s*(?:import\s+)?(?:[\w.]+\s+)?"(?P<name>[\w-]+\.[^"\n]+/[^"\n]+)"\s*$""", re.MULTILINE
)
_JAVA = re.compile(r"^\s*import\s+(?:static\s+)?(?P<name>[\w.]+)", re.MULTILINE)
_C = re.compile(r"""^\s*#\s*include\s*["<](?P<name>[^">\n]+)[">]""", re.MULTILINE)
_RUST = re.compile(
    r"^\s*(?:pub(?:\([^)]*\))?\s+)?(?:mod\s+(?P<module>\w+)\s*;|use\s+(?P<name>[\w:]+))",
    re.MULTILINE,
)
_RUBY = re.compile(
    r"""^\s*require(?P<relative>_relative)?\s*\(?\s*['"](?P<name>[^'"\n]+)['"]""", re.MULTILINE
)


def import_graph(texts: Mapping[PurePosixPath, str]) -> Graph:
    """Return for each file the files of `texts` that it imports."""
    index = _Index(texts)
    return {path: frozenset(index.imported(path, text)) for path, text in texts.items()}


def _python(text: str) -> Names:
    for found in _PY.finditer(text):
        if found["modules"]:
            for name in found["modules"].split(","):
                yield (tuple(name.split()[0].split(".")),) if name.split() else ()
            continue
        dots = len(found["dots"])
        front = (".", *[".."] * (dots - 1)) if dots else ()
        module = (*front, *filter(None, found["module"].split(".")))
        for name in re.findall(r"(\w+|\*)(?:\s+as\s+\w+)?", found["names"]):
            yield (*module, name), module


def _javascript(text: str) -> Names:
    for found in _JS.finditer(text):
        parts = tuple(found["name"].split("/"))
        stem = re.sub(r"\.(?:[cm]?[jt]sx?)$", "", parts[-1])
        yield (*parts[:-1], stem), (*parts, "index")


def _go(text: str) -> Names:
    for found in _GO.finditer(text):
        parts = tuple(found["name"].split("/"))
        package = (*parts[:-1], parts[-1] + _PACKAGE)
        yield tuple(package[start:] for start in range(1, len(package)))


def _java(text: str) -> Names:
    for found in _JAVA.finditer(text):
        parts = tuple(found["name"].strip(".").split("."))
        yield parts, parts[:-1]


def _c(text: str) -> Names:
    for found in _C.finditer(text):
        parts = tuple(found["name"].split("/"))
        header = (*parts[:-1], PurePosixPath(parts[-1]).stem)
        yield (".", *header), header


def _rust(text: str) -> Names:
    for found in _RUST.finditer(text):
        if found["module"]:
            yield (".", found["module"]), (".", found["module"], "mod"), (found["module"],)
            continue
        parts = [part for part in found["name"].split("::") if part]
        while parts and parts[0] in {"crate", "self", "super"}:
            parts.pop(0)
        ends = [tuple(parts[:length]) for length in range(len(parts), 0, -1)]
        yield tuple(name for end in ends for name in (end, (*end, "mod")))


def _ruby(text: str) -> Names:
    for found in _RUBY.finditer(text):
        parts = tuple(found["name"].removesuffix(".rb").split("/"))
        yield ((".", *parts),) if found["relative"] else (parts,)


_READERS: Mapping[str, tuple[Callable[[str], Names], frozenset[str]]] = {
    suffix: (reader, frozenset(suffixes.split()))
    for suffixes, reader in (
        (".py .pyi", _python),
        (".js .jsx .mjs .cjs .ts .tsx .mts .cts", _javascript),
        (".go", _go),
        (".java", _java),
        (".c .h .cc .cpp .cxx .hh .hpp .hxx .cu .cuh", _c),
        (".rs", _rust),
        (".rb", _ruby),
    )
    for suffix in suffixes.split()
}
_PACKAGE = "/"  # ends the name of a folder all of whose files are imported together


class _Index:
    """The files of a root by their last name, so that a path's end is found without a search."""

    def __init__(self, paths: Iterable[PurePosixPath]) -> None:
        self._named: dict[str, list[tuple[tuple[str, ...], PurePosixPath]]] = defaultdict(list)
        for path in sorted(paths):
            if path.suffix in _READERS:
                for parts in _module_paths(path):
                    self._named[parts[-1]].append((parts, path))

    def imported(self, path: PurePosixPath, text: str) -> Iterator[PurePosixPath]:
        """The files that this one names."""
        reader, suffixes = _READERS.get(path.suffix, (None, frozenset()))
        for alternatives in reader(text) if reader else ():
            for name in alternatives:
                if found := [file for file in self._find(name, path, suffixes) if file != path]:
                    yield from found
                    break

    def _find(
        self, name: tuple[str, ...], importer: PurePosixPath, suffixes: frozenset[str]
    ) -> list[PurePosixPath]:
        """The files of the module nearest to the importer: a header and its source, a package."""
        folder = importer.parent.parts
        exact = bool(name) and name[0] in {".", ".."}
        wanted = _resolved(folder, name) if exact else name
        if not wanted:
            return []
        fitting = [
            (parts, path)
            for parts, path in self._named.get(wanted[-1], ())
            if (parts == wanted if exact else parts[-len(wanted) :] == wanted)
            and path.suffix in suffixes
        ]
        nearest = max(fitting, key=lambda one: _shared(one[0], folder), default=None)
        return [path for parts, path in fitting if nearest and parts == nearest[0]]


def _module_paths(path: PurePosixPath) -> Iterator[tuple[str, ...]]:
    """What a file is imported as: its path without suffix, and the folder that it stands for."""
    parts = path.with_suffix("").parts
    yield parts
    if parts[-1] == "__init__" and len(parts) > 1:
        yield parts[:-1]
    if path.suffix == ".go" and not parts[-1].endswith("_test") and len(parts) > 1:
        yield (*parts[:-2], parts[-2] + _PACKAGE)


def _resolved(folder: tuple[str, ...], name: tuple[str, ...]) -> tuple[str, ...]:
    at = list(folder)
    for part in name:
        if part == "..":
            if not at:
                return ()
            at.pop()
        elif part not in {".", ""}:
            at.append(part)
    return tuple(at)


def _shared(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return length
