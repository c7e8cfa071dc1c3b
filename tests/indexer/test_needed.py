"""The definitions that a cursor needs from other files: which, how steadily, and whose never."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexer.tree_support import git, own_git_home, write
from qcn_indexer.needed import BUDGET, NeededDefinitions
from sampling import examples

CURSOR = "‸"
PRICES = (
    'class Price:\n    """What a thing costs."""\n\n    amount: int\n\n'
    "    def with_tax(self, rate: float) -> 'Price':\n        return self\n\n\n"
    'def price(item: str, *, count: int = 1) -> Price:\n    """Look it up."""\n'
    "    return Price()\n\n\n"
    "def unused() -> None: ...\n"
)
MAIN = "from lib.prices import price\n\ndef total(item):\n    return price(‸\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own_git_home(tmp_path / "home", monkeypatch)
    return write(tmp_path / "shop", {"lib/prices.py": PRICES, "main.py": MAIN})


def near(
    finder: NeededDefinitions,
    marked: str,
    path: str = "main.py",
    shown: tuple[str, ...] = (),
    **buffers: str,
) -> dict[str, str]:
    found = finder.near(
        PurePosixPath(path),
        marked.replace(CURSOR, ""),
        marked.index(CURSOR),
        shown=set(map(PurePosixPath, shown)),
        buffers={PurePosixPath(name.replace("__", "/") + ".py"): buffers[name] for name in buffers},
    )
    return {str(file.path): file.text for file in found}


def test_what_the_code_at_the_cursor_calls_is_found_by_the_imports(root: Path) -> None:
    assert near(NeededDefinitions(root), MAIN) == {
        "lib/prices.py": (
            'def price(item: str, *, count: int = 1) -> Price:\n    """Look it up."""\n'
        )
    }


def test_a_member_comes_with_its_class_and_a_short_class_with_its_members(root: Path) -> None:
    member = near(NeededDefinitions(root), "import lib.prices\nx = y.with_tax(1)\n‸")
    whole = near(NeededDefinitions(root), "from lib.prices import Price\n‸")
    assert member["lib/prices.py"].startswith("class Price:\n")
    assert "def with_tax" in member["lib/prices.py"]
    assert "amount: int" not in member["lib/prices.py"]
    assert "amount: int" in whole["lib/prices.py"]
    assert "def with_tax" in whole["lib/prices.py"]


def test_a_file_that_the_model_reads_anyway_is_not_shown_again(root: Path) -> None:
    assert near(NeededDefinitions(root), MAIN, shown=("lib/prices.py",)) == {}


def test_the_word_being_typed_and_what_the_document_defines_itself_need_nothing(
    root: Path,
) -> None:
    finder = NeededDefinitions(root)
    assert near(finder, "import lib.prices\npric‸") == {}
    assert near(finder, "import lib.prices\nprice‸") == {}
    assert near(finder, "import lib.prices\ndef price(): ...\nprice()\n‸") == {}


def test_a_change_on_disk_and_one_in_an_open_buffer_are_seen(root: Path) -> None:
    finder = NeededDefinitions(root)
    near(finder, MAIN)
    write(root, {"lib/prices.py": "def price(thing):\n    return 1.0\n"})
    assert near(finder, MAIN) == {"lib/prices.py": "def price(thing):\n"}
    assert near(finder, MAIN, lib__prices="def price(a, b): ...\n") == {
        "lib/prices.py": "def price(a, b):\n"
    }


def test_what_a_package_exports_again_is_found_where_it_is_defined(root: Path) -> None:
    write(root, {"lib/__init__.py": "from .prices import price\n"})
    assert "lib/prices.py" in near(NeededDefinitions(root), "from lib import price\nprice(‸")


@pytest.mark.parametrize(
    ("path", "marked", "other", "text", "signature"),
    [
        ("src/a.ts", "import { f } from './b';\nf(‸", "src/b.ts", "export function f(x: A) { }\n",
         "export function f(x: A)"),
        ("cmd/a.go", 'package a\nimport "x.org/me/pkg/b"\nfunc a() {\n b.F(‸', "pkg/b/b.go",
         "package b\nfunc F(x int) int {\n\treturn x\n}\n", "func F(x int) int"),
        ("pkg/a.go", "package pkg\nfunc a() { F(‸", "pkg/b.go",
         "package pkg\nfunc F(x int) int {\n\treturn x\n}\n", "func F(x int) int"),
        ("src/a.c", '#include "b.h"\nint a() { return f(‸', "include/b.h", "int f(int x);\n",
         "int f(int x);"),
        ("src/main/java/me/A.java", "package me;\nimport me.b.B;\nclass A { B b; ‸",
         "src/main/java/me/b/B.java", "package me.b;\npublic class B { int x; }\n",
         "public class B"),
        ("src/main.rs", "mod b;\nuse b::f;\nfn a() { f(‸", "src/b.rs", "pub fn f(x: u8) {}\n",
         "pub fn f(x: u8)"),
        ("lib/a.rb", "require_relative 'b'\nf(‸", "lib/b.rb", "def f(x)\n  1\nend\n", "def f(x)"),
    ],
)  # fmt: skip
def test_each_language_finds_its_own(
    tmp_path: Path, path: str, marked: str, other: str, text: str, signature: str
) -> None:
    write(tmp_path, {other: text})
    assert near(NeededDefinitions(tmp_path), marked, path)[other].split("\n")[0] == signature


def test_ignored_files_secrets_and_what_is_outside_are_never_shown(root: Path) -> None:
    git(root, "init", "-q")
    outside = write(root.parent / "outside", {"far.py": PRICES})
    token = "ghp_" + "a1B2c3D4e5" * 3 + "f6G7h8"
    write(
        root,
        {
            ".gitignore": "build/\n",
            "build/made.py": PRICES,
            "keys.py": f"def price(): ...\nTOKEN = '{token}'\n",
            "home.rb": f"require '{outside}/far'\n",
        },
    )
    (root / "linked").symlink_to(outside)
    finder = NeededDefinitions(root)
    for name in ("build.made", "keys", "linked.far", "...outside.far", "....shop.lib.far"):
        assert near(finder, f"from {name} import price\nprice(‸") == {}, name
    assert near(finder, f"require '{outside}/far'\nprice(‸", "home.rb") == {}
    assert near(finder, MAIN, lib__prices=f"{PRICES}TOKEN = '{token}'\n") == {}


def test_what_becomes_ignored_is_gone_at_once(root: Path) -> None:
    git(root, "init", "-q")
    finder = NeededDefinitions(root)
    assert near(finder, MAIN)
    write(root, {".gitignore": "lib/\n"})
    assert near(finder, MAIN) == {}


def test_typing_on_and_moving_on_does_not_change_what_is_shown(root: Path) -> None:
    finder = NeededDefinitions(root)
    first = near(finder, MAIN)
    for typed in ("x", "x)", "x)\n    y = ", "x)\n" + "\n" * 30, "x)\n    return total("):
        assert near(finder, MAIN.replace(CURSOR, typed + CURSOR)) == first


NAMES = [f"function_number_{i}" for i in range(40)]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of more definitions than fit."""
    text = "".join(f"def {name}(a, b, c, d, e, f, g, h): ...\n" for name in NAMES)
    return write(tmp_path_factory.mktemp("many"), {"many.py": text})


@pytest.mark.long
@examples(sample=50, full=1000)
@given(uses=st.lists(st.lists(st.sampled_from(NAMES), max_size=8), min_size=1, max_size=12))
def test_what_is_shown_fits_and_holds_what_stands_nearest(
    many: Path, uses: list[list[str]]
) -> None:
    finder, text = NeededDefinitions(many), "from many import *\n"
    for names in uses:
        text += "".join(f"{name}()\n" for name in names)
        shown = near(finder, text + CURSOR).get("many.py", "")
        assert len(shown) <= BUDGET
        assert all(f"def {name}(" in shown for name in names[-3:])
        signatures = [line for line in shown.split("\n") if line]
        assert signatures == sorted(
            signatures, key=lambda line: NAMES.index(line[4 : line.index("(")])
        )
        assert shown == near(finder, text + CURSOR).get("many.py", "")
