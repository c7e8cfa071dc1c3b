"""The function around a place, how well a text parses, and its code without comments."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qcn_indexer.enclosing import code_alone, function_around, statement_around, syntax_errors
from qcn_indexer.functions import functions
from qcn_indexer.tree import tree_of
from sampling import examples

CURSOR = "‸"


def around(name: str, marked: str) -> tuple[str, str, bool] | None:
    """Return the name of the function at the cursor, its text, and whether it is a stub."""
    cursor, text = marked.index(CURSOR), marked.replace(CURSOR, "")
    found = function_around(PurePosixPath(name), text, cursor, cursor)
    return (found.name, text[found.start : found.end], found.is_stub) if found else None


@pytest.mark.parametrize(
    ("name", "marked", "function"),
    [
        ("a.py", "class A:\n    @x\n    def f(self):\n‸        return 1\n", "@x"),
        ("a.py", "é = '🙂'\nclass A:\n    def f(self):\n        return 'é‸🙂'\n", "def f"),
        ("a.py", "def g():\n    def f():\n        return 1‸\n    return f\n", "def f"),
        ("a.js", "export const f = (a) => {\n ‸ return 1\n}\n", "export"),
        ("a.ts", "class A {\n  f(): number { ‸return 1 }\n}\n", "f()"),
        ("a.go", "package a\n\nfunc (a *A) f() int {\n‸\treturn 1\n}\n", "func"),
        ("A.java", "class A {\n  int f() { return ‸1; }\n}\n", "int f"),
        ("a.c", "int f(int a)\n{\n  return ‸1;\n}\n", "int f"),
        ("a.rs", "impl A {\n    fn f() -> i32 { 1‸ }\n}\n", "fn f"),
        ("a.cs", "class A {\n  int f() { ‸return 1; }\n}\n", "int f"),
        ("a.rb", "class A\n  def f\n    ‸1\n  end\nend\n", "def f"),
        ("a.php", "<?php\nfunction f() {\n  return ‸1;\n}\n", "function f"),
        ("a.lua", "function f()\n  return ‸1\nend\n", "function f"),
    ],
)
def test_the_innermost_function_is_found(name: str, marked: str, function: str) -> None:
    found = around(name, marked)
    assert found is not None
    assert found[0] == "f"
    assert found[1].lstrip().startswith(function)
    assert not found[2]
    text = marked.replace(CURSOR, "")
    assert text[: text.index(found[1])][-1:] in ("", "\n")


@pytest.mark.parametrize(
    ("name", "marked", "function"),
    [
        ("a.js", "export const f = (a) => a‸\n", "f"),
        ("a.js", "export ‸const f = (a) => a\n", "f"),
        ("a.js", "const f = () => 1, g = () => ‸2\n", "g"),
        ("a.py", "@‸x\ndef f():\n    return 1\n", "f"),
        ("a.cpp", "A& A::operator=(const A& a)\n{\n  ‸return a;\n}\n", "A::operator="),
        ("a.lua", "function M.f()\n  return ‸1\nend\n", "M.f"),
    ],
)
def test_a_function_is_found_from_what_stands_around_it(
    name: str, marked: str, function: str
) -> None:
    found = around(name, marked)
    assert found is not None
    assert found[0] == function
    assert not found[2]  # what only answers with a value says something


def test_a_name_is_qualified_by_types_and_functions() -> None:
    text = (
        "class A:\n    def f(self):\n        def g():\n            pass\n\n    def _h(self): ...\n"
    )
    tree = tree_of(PurePosixPath("a.py"), text)
    assert tree is not None
    found = [(one.qualified, one.is_public) for one in functions(tree)]
    assert found == [("A.f", True), ("A.f.g", False), ("A._h", False)]


def test_between_two_of_a_declaration_there_is_none() -> None:
    assert around("a.js", "con‸st f = () => 1, g = () => 2\n") is None


@pytest.mark.parametrize(
    ("name", "marked"),
    [
        ("a.py", "def f():\n    return 1\n‸\n"),
        ("a.py", "x = ‸1\n"),
        ("a.py", "class A:\n    x = ‸1\n"),
        ("notes.txt", "def f():\n    return ‸1\n"),
    ],
)
def test_elsewhere_there_is_none(name: str, marked: str) -> None:
    assert around(name, marked) is None


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.py", "def f():\n    ‸\n"),
        ("a.py", "def f():\n    '''What it does.'''\n    # to do\n    ‸...\n"),
        ("a.py", "def f():\n    raise NotImplementedError('later')‸\n"),
        ("a.js", "function f() {‸}\n"),
        ("a.go", 'package a\n\nfunc f() {\n\tpanic("not yet")‸\n}\n'),
        ("a.rs", "fn f() { ‸todo!() }\n"),
        ("A.java", "class A { void f() { ‸throw new UnsupportedOperationException(); } }\n"),
        ("a.c", "void f(void)\n{\n‸}\n"),
    ],
)
def test_a_function_that_says_nothing_is_a_stub(name: str, body: str) -> None:
    found = around(name, body)
    assert found is not None
    assert found[2]


def test_the_comment_right_above_belongs_to_it() -> None:
    text = "package a\n\n// far\n\n// f does\n// much.\nfunc f() {\n}\n"
    found = function_around(PurePosixPath("a.go"), text, len(text) - 3, len(text) - 3)
    assert found is not None
    assert text[found.comment : found.start] == "// f does\n// much.\n"


def test_a_selection_has_the_function_that_holds_all_of_it() -> None:
    text = "def g():\n    def f():\n        return 1\n    return f\n"
    first, last = text.index("return 1"), text.index("return f") + 1
    found = function_around(PurePosixPath("a.py"), text, first, last)
    assert found is not None
    assert found.name == "g"


def test_statements() -> None:
    text = "x = 1\nif x:\n    y = (2)\n\nz = 3\n"
    at = text.index("2")
    found = statement_around(PurePosixPath("a.py"), text, at, at)
    assert found is not None
    assert text[slice(*found)] == "if x:\n    y = (2)"


def test_syntax_errors_are_counted() -> None:
    path = PurePosixPath("a.py")
    assert syntax_errors(path, "def f():\n    return 1\n") == 0
    broken = "def f():\n    x = = 1\n\n\n"
    one, two = syntax_errors(path, broken), syntax_errors(path, 2 * broken)
    assert one is not None
    assert two is not None
    assert 0 < one < two
    assert syntax_errors(PurePosixPath("notes.txt"), "x = (") is None


@pytest.mark.parametrize(
    ("name", "before", "after", "same"),
    [
        (
            "a.py",
            "def f(a):\n    return a\n",
            'def f(a):\n    """a"""\n    # b\n    return a\n',
            True,
        ),
        ("a.py", "def f(a):\n    return a\n", 'def f(a):\n    """a"""\n    return b\n', False),
        ("a.py", "if a:\n    b()\nc()\n", "if a:\n    b()\n    c()\n", False),
        ("a.py", "x = 'a'\n", "x = 'b'\n", False),
        ("a.js", "f(1);\n", "/** x */\nf(1); // y\n", True),
        ("a.js", "f(1);\n", "/** x */ g(1);\n", False),
    ],
)
def test_comments_and_docstrings_are_no_code(
    name: str, before: str, after: str, same: bool
) -> None:
    path = PurePosixPath(name)
    assert (code_alone(path, before) == code_alone(path, after)) is same


@pytest.mark.long
@examples(sample=60, full=3_000)
@given(
    st.text(st.sampled_from("def f():\n\t (){}[]'\"#=x1é🙂\ud800\r"), max_size=80),
    st.integers(0, 80),
    st.integers(0, 10),
    st.sampled_from(["a.py", "a.js", "a.go", "a.c", "a.rb", "A.java", "a.rs"]),
)
def test_of_any_text_what_is_found_lies_in_it(text: str, start: int, size: int, name: str) -> None:
    start = min(start, len(text))
    end = min(start + size, len(text))
    path = PurePosixPath(name)
    if found := function_around(path, text, start, end):
        assert 0 <= found.comment <= found.start < found.end <= len(text)
    if span := statement_around(path, text, start, end):
        assert 0 <= span[0] <= span[1] <= len(text)
    errors = syntax_errors(path, text)
    assert errors is not None
    assert errors >= 0
