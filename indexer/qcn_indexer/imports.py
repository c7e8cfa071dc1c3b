"""Which files of a root import which: the import statements as tree-sitter reads them.

An import is resolved to files of the root by its path's end, since where a language looks for its
modules (source roots, `tsconfig` paths, Go modules, crates) is set in files that we do not read: of
several files that fit, the nearest one to the importer is taken. What is not found in the root is
another project's.

Failure modes, all harmless to a ranking: a name that another project owns may fit a file of the
root; C#'s `using` names no file, so C# has no imports.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from tree_sitter import Node

from qcn_indexer.syntax import grammar_language, import_nodes, parse
from qcn_indexer.tree import words

Graph = Mapping[PurePosixPath, frozenset[PurePosixPath]]
# What an import says: alternatives, the first of which that is found counts, each as the parts of a
# path without its suffix. A leading "." or ".." starts at the importer's folder.
Import = tuple[tuple[str, ...], ...]
Imports = Iterator[Import]
Captures = Mapping[str, list[Node]]
Reader = Callable[[PurePosixPath, str], Sequence[Import]]


def import_graph(texts: Mapping[PurePosixPath, str], read: Reader | None = None) -> Graph:
    """Return for each file the files of `texts` that it imports, as `read` finds (`imports`)."""
    index, read = _Index(texts), read or imports
    return {path: frozenset(index.imported(path, read(path, text))) for path, text in texts.items()}


class KnownImports:
    """What files import, parsed once for each state of a file: parsing is what takes the time.

    Kept are the files that were asked for in the last two rounds; `MOST` names end a round.
    """

    MOST = 8_192

    def __init__(self) -> None:
        self._known: dict[PurePosixPath, tuple[int, Sequence[Import]]] = {}
        self._older = self._known

    def of(self, path: PurePosixPath, text: str) -> Sequence[Import]:
        """Return what a file of this name and text imports."""
        found = self._known.get(path) or self._older.get(path)
        if found is None or found[0] != hash(text):
            found = hash(text), imports(path, text)
        if len(self._known) >= self.MOST:
            self._known, self._older = {}, self._known
        self._known[path] = found
        return found[1]


def imports(path: PurePosixPath, text: str) -> list[Import]:
    """Return what a file of this name and text imports; nothing where no grammar reads it."""
    language = grammar_language(path)
    read = _READERS.get(language or "")
    if language is None or read is None or (root := parse(language, text)) is None:
        return []
    return list(read(import_nodes(language, root)))


def _python(captures: Captures) -> Imports:
    for statement in captures.get("statement", ()):
        names = [
            words(name.child_by_field_name("name") or name)
            for name in statement.children_by_field_name("name")
        ]
        if (source := statement.child_by_field_name("module_name")) is None:
            yield from ((tuple(name.split(".")),) for name in names)
            continue
        module = words(source).lstrip(".")
        dots = len(words(source)) - len(module)
        front = (".", *[".."] * (dots - 1)) if dots else ()
        whole = (*front, *filter(None, module.lstrip().split(".")))
        if any(child.type == "wildcard_import" for child in statement.named_children):
            names.append("*")
        yield from (((*whole, name), whole) for name in names)


def _javascript(captures: Captures) -> Imports:
    for path in _texts(captures, "path"):
        if path.startswith("."):
            parts = tuple(path.split("/"))
            stem = re.sub(r"\.(?:[cm]?[jt]sx?)$", "", parts[-1])
            yield (*parts[:-1], stem), (*parts, "index")


def _go(captures: Captures) -> Imports:
    for path in _texts(captures, "path"):
        parts = tuple(path.strip('"`').split("/"))
        if len(parts) > 1 and "." in parts[0]:  # else it is the standard library's
            package = (*parts[:-1], parts[-1] + PACKAGE)
            yield tuple(package[start:] for start in range(1, len(package)))


def _java(captures: Captures) -> Imports:
    for name in _texts(captures, "name"):
        parts = tuple(name.split("."))
        yield parts, parts[:-1]


def _c(captures: Captures) -> Imports:
    for path in _texts(captures, "path"):
        parts = tuple(path.strip('<>"').split("/"))
        header = (*parts[:-1], PurePosixPath(parts[-1]).stem)
        yield (".", *header), header


def _rust(captures: Captures) -> Imports:
    for module in _texts(captures, "module"):
        yield (".", module), (".", module, "mod"), (module,)
    for use in captures.get("use", ()):
        for path in _used(use, ()):
            parts = [part for part in path if part not in {"crate", "self", "super"}]
            ends = [tuple(parts[:length]) for length in range(len(parts), 0, -1)]
            yield tuple(name for end in ends for name in (end, (*end, "mod")))


def _used(use: Node, front: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The paths that a `use` names, its braces written out."""
    if use.type in {"use_list", "scoped_use_list", "use_as_clause"}:
        if path := use.child_by_field_name("path"):
            front = (*front, *words(path).split("::"))
        listed = use if use.type == "use_list" else use.child_by_field_name("list")
        if listed is None:
            yield front
        else:
            for child in listed.named_children:
                yield from _used(child, front)
    elif use.type == "use_wildcard":
        yield (*front, *words(use).removesuffix("*").removesuffix("::").split("::"))
    else:
        yield (*front, *words(use).split("::"))


def _ruby(captures: Captures) -> Imports:
    for called, path in zip(_texts(captures, "called"), _texts(captures, "path"), strict=False):
        parts = tuple(path.removesuffix(".rb").split("/"))
        yield ((".", *parts),) if called == "require_relative" else (parts,)


def _php(captures: Captures) -> Imports:
    for name in _texts(captures, "name"):
        parts = tuple(name.strip("\\").split("\\"))
        # A namespace's first parts often stand for a folder of another name (PSR-4).
        yield tuple(parts[start:] for start in range(len(parts) - 1)) or (parts,)
    for path in _texts(captures, "path"):
        parts = tuple(path.removesuffix(".php").strip("/").split("/"))
        yield (".", *parts), parts


def _shell(captures: Captures) -> Imports:
    for path in _texts(captures, "path"):
        parts = [part for part in path.strip("\"'").split("/") if part and not part.startswith("$")]
        if parts:
            parts[-1] = PurePosixPath(parts[-1]).stem
            yield (".", *parts), tuple(part for part in parts if part not in {".", ".."})


def _lua(captures: Captures) -> Imports:
    for name in _texts(captures, "path"):
        parts = tuple(re.split(r"[./]", name))
        yield parts, (*parts, "init")


def _texts(captures: Captures, name: str) -> Iterator[str]:
    return map(words, captures.get(name, ()))


_READERS: Mapping[str, Callable[[Captures], Imports]] = {
    "python": _python,
    "javascript": _javascript,
    "typescript": _javascript,
    "typescriptreact": _javascript,
    "go": _go,
    "java": _java,
    "c": _c,
    "cpp": _c,
    "rust": _rust,
    "ruby": _ruby,
    "php": _php,
    "shellscript": _shell,
    "lua": _lua,
}
# Languages that import one another's files.
_FAMILIES = {
    "javascriptreact": "javascript",
    "typescript": "javascript",
    "typescriptreact": "javascript",
    "cpp": "c",
}
PACKAGE = "/"  # ends the name of a folder all of whose files are imported together


def family_of(path: PurePosixPath) -> str | None:
    """Return what files that may import one another have in common, or None if nothing can."""
    language = grammar_language(path)
    return _FAMILIES.get(language, language) if language and language in _READERS else None


class _Index:
    """The files of a root by their last name, so that a path's end is found without a search."""

    def __init__(self, paths: Iterable[PurePosixPath]) -> None:
        self._named: dict[str, list[tuple[tuple[str, ...], PurePosixPath]]] = defaultdict(list)
        for path in sorted(paths):
            if family_of(path):
                for parts in _module_paths(path):
                    self._named[parts[-1]].append((parts, path))

    def imported(self, path: PurePosixPath, named: Iterable[Import]) -> Iterator[PurePosixPath]:
        """The files that this one names."""
        for alternatives in named:
            for name in alternatives:
                if found := [file for file in self._find(name, path) if file != path]:
                    yield from found
                    break

    def _find(self, name: tuple[str, ...], importer: PurePosixPath) -> list[PurePosixPath]:
        """The files of the module nearest to the importer: a header and its source, a package."""
        folder = importer.parent.parts
        exact = bool(name) and name[0] in {".", ".."}
        wanted = resolved(folder, name) if exact else name
        if not wanted:
            return []
        fitting = [
            (parts, path)
            for parts, path in self._named.get(wanted[-1], ())
            if (parts == wanted if exact else parts[-len(wanted) :] == wanted)
            and family_of(path) == family_of(importer)
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
        yield (*parts[:-2], parts[-2] + PACKAGE)


def resolved(folder: tuple[str, ...], name: tuple[str, ...]) -> tuple[str, ...]:
    """Return the path that a relative import means; empty where it leads out of the root."""
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
