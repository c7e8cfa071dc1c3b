"""Where the test of a function goes: the file that holds such tests already, or a new one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qcn_lsp.fixes.paths import is_test
from qcn_lsp.postprocess.whitespace import indent_unit

LONGEST_BYTES = 512 * 1024

_SCRIPTS = (".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs")


@dataclass(frozen=True, slots=True)
class PlaceForTests:
    """A file for tests: `text` is what stands there, None where there is no such file yet."""

    path: PurePosixPath
    framework: str
    text: str | None


def place_for_tests(root: Path, path: PurePosixPath) -> PlaceForTests | None:
    """Return where tests of the file `path` below `root` go; None where we know of no place.

    Only files that the rules of the workspace show to a model: not ignored, no secrets, no links
    that lead out of it.
    """
    framework = _framework(path)
    places = list(_places(path))
    if is_test(path) or not places:
        return None
    for place in places:
        if (text := _text(root, place)) is not None:
            return PlaceForTests(place, framework, text)
    for place in places:
        if not (root / place).is_symlink() and not (root / place).exists():
            folder = (root / place).parent
            inside = folder.resolve().is_relative_to(root.resolve())
            if inside and (folder.is_dir() or place.suffix == ".java") and _is_shown(root, place):
                return PlaceForTests(place, framework, None)
    return None


def with_added(text: str, added: str, path: PurePosixPath) -> tuple[int, str]:
    """Return where in a test file's `text` new tests go, and how they are to stand there."""
    if path.suffix == ".java" and (last := text.rfind("}")) >= 0:
        unit = indent_unit(text.split("\n")) or "    "
        lines = (unit + line if line.strip() else line for line in added.rstrip().split("\n"))
        return text.rfind("\n", 0, last) + 1, "\n" + "\n".join(lines) + "\n"
    added = added.strip("\n").rstrip() + "\n"
    if not text.strip():
        return len(text), added
    blank_lines = 2 if path.suffix == ".py" else 1
    return len(text), "\n" * (blank_lines + (not text.endswith(("\n", "\r")))) + added


def _places(path: PurePosixPath) -> Iterator[PurePosixPath]:
    """Yield where a project may keep the tests of a file, the most usual place first."""
    stem, suffix, folder = path.stem, path.suffix, path.parent
    if suffix == ".py":
        name = f"test_{stem}.py"
        yield from (PurePosixPath(top, name) for top in ("tests", "test"))
        below = folder.parts[1:]  # tests/ laid out as the package is
        yield from (PurePosixPath(top, *below, name) for top in ("tests", "test"))
        yield from (folder / "tests" / name, folder / name)
    elif suffix in _SCRIPTS:
        for mark in ("test", "spec"):
            yield folder / f"{stem}.{mark}{suffix}"
        yield folder / "__tests__" / f"{stem}.test{suffix}"
    elif suffix == ".go":
        yield folder / f"{stem}_test.go"
    elif suffix == ".java" and "main" in folder.parts:
        parts = list(folder.parts)
        parts[parts.index("main")] = "test"
        yield PurePosixPath(*parts, f"{stem}Test.java")


def _framework(path: PurePosixPath) -> str:
    if path.suffix == ".py":
        return "pytest"
    if path.suffix in _SCRIPTS:
        return "the test framework of the project (Jest's and Vitest's describe, it and expect)"
    return {".go": "Go's testing package", ".java": "JUnit 5"}.get(path.suffix, "")


def _text(root: Path, place: PurePosixPath) -> str | None:
    from qcn_indexer.files import read_file

    try:
        if not (root / place).parent.resolve().is_relative_to(root.resolve()):
            return None
        text = read_file(root / place, limit=LONGEST_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    from qcn_indexer.secrets import looks_secret

    return text if _is_shown(root, place) and not looks_secret(place, text) else None


def _is_shown(root: Path, place: PurePosixPath) -> bool:
    from qcn_indexer.open_files import withheld

    return withheld(root, place) is None
