"""What a file defines, held against Python's own parser; and bounded, whatever the text is."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qcn_indexer import syntax
from qcn_indexer.definitions import LONGEST_LINE, LONGEST_SIGNATURE, definitions
from qcn_indexer.syntax import LONGEST, parse
from sampling import examples

STANDARD_LIBRARY = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
PY = PurePosixPath("a.py")


def defined_by_ast(body: list[ast.stmt], depth: int = 0) -> Iterator[tuple[str, int, int]]:
    """Each class and function outside functions: its name, its first line, its depth."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            yield node.name, first - 1, depth
            if isinstance(node, ast.ClassDef):
                yield from defined_by_ast(node.body, depth + 1)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from defined_by_ast(node.body, depth)
            for handler in getattr(node, "handlers", []):
                yield from defined_by_ast(handler.body, depth)
            yield from defined_by_ast(getattr(node, "orelse", []), depth)
            yield from defined_by_ast(getattr(node, "finalbody", []), depth)


def test_of_the_standard_library_is_found_what_python_itself_finds() -> None:
    for file in STANDARD_LIBRARY:
        text = file.read_text("utf-8")
        if len(text.encode()) > LONGEST:
            continue
        found = {
            (name, one.line, one.depth)
            for one in definitions(PY, text)
            if one.signature.lstrip().startswith(("def ", "async ", "class ", "@"))
            for name in one.names
        }
        assert found == set(defined_by_ast(ast.parse(text).body)), file.name


def test_a_signature_ends_where_the_body_begins_and_has_the_docstrings_first_line() -> None:
    text = (
        "@dataclass(\n    frozen=True\n)\nclass Point:\n    '''Where.\n\n    More.\n    '''\n"
        '    x: int\n\n    def moved(self, by: \'Point\') -> \'Point\':\n        """Elsewhere."""\n'
        "        def inner(): ...\n        return by\n"
    )
    assert [one.signature for one in definitions(PY, text)] == [
        "@dataclass(\n    frozen=True\n)\nclass Point:\n    '''Where.",
        "    x: int",
        '    def moved(self, by: \'Point\') -> \'Point\':\n        """Elsewhere."""',
    ]


def test_of_broken_code_what_can_be_understood_is_found() -> None:
    text = "def whole(a):\n    return a\n\nclass Half:\n    def f(self, x):\n        return (x +\n"
    names = [name for one in definitions(PY, text) for name in one.names]
    assert names[:2] == ["whole", "Half"]


def test_a_definition_in_a_string_or_a_comment_is_none() -> None:
    assert definitions(PY, '"""\ndef f(): ...\n"""\n# def g(): ...\n') == []


def test_a_long_signature_is_cut() -> None:
    text = "def f(\n" + "    x,\n" * 100 + "): ...\n" + f"Y = {'x' * 1000}\n"
    long, wide = definitions(PY, text)
    assert long.signature.count("\n") == LONGEST_SIGNATURE - 1
    assert len(wide.signature) == LONGEST_LINE


@pytest.mark.parametrize("text", ["x" * 50_000_000, "a = [" * 50_000, "if x:\n " * 40_000])
def test_what_is_huge_or_deep_is_no_trouble(text: str) -> None:
    for name in ("a.py", "a.ts", "a.cpp", "a.rs"):
        assert len(definitions(PurePosixPath(name), text)) <= 1


def test_parsing_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "(a)*" * 40_000  # two minutes for bash's grammar
    monkeypatch.setattr(syntax, "SECONDS", 0.05)
    assert parse("shellscript", text) is None


LANGUAGES = ["a.py", "a.js", "a.ts", "a.go", "a.java", "a.c", "a.cpp", "a.rs", "a.cs", "a.rb"]
LANGUAGES += ["a.php", "a.sh", "a.lua", "a.tsx", "a.h"]
PIECES = ["class A", "def f", "(", ")", "{", "}", ":", "\n", "  ", "import a", "x = 1", "é🙂", "\0"]
PIECES += ["function g", "struct S", '"', "#include", ";", "<?php", "export ", "@x", "\ud800"]


@pytest.mark.long
@examples(sample=100, full=3000)
@given(name=st.sampled_from(LANGUAGES), pieces=st.lists(st.sampled_from(PIECES), max_size=60))
def test_any_text_gives_definitions_that_stand_in_it_in_order(name: str, pieces: list[str]) -> None:
    text = " ".join(pieces)
    found = definitions(PurePosixPath(name), text)
    lines = text.encode("utf-8", "replace").decode().split("\n")
    for one in found:
        assert one.names
        assert one.signature.split("\n")[0].rstrip() in lines[one.line]
    assert [one.line for one in found] == sorted(one.line for one in found)
