"""Where the test of a function goes."""

from pathlib import Path, PurePosixPath

import pytest

from qcn_lsp.features.actions.testing import place_for_tests, with_added
from qcn_lsp.fixes.paths import is_test


def place(root: Path, name: str) -> tuple[str, str | None] | None:
    found = place_for_tests(root, PurePosixPath(name))
    return None if found is None else (found.path.as_posix(), found.text)


def write(root: Path, name: str, text: str = "") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("there", "source", "expected"),
    [
        ("tests/x", "shop/cart.py", "tests/test_cart.py"),
        ("test/x", "shop/cart.py", "test/test_cart.py"),
        ("tests/sub/x", "shop/sub/cart.py", "tests/test_cart.py"),
        ("shop/x", "shop/cart.py", "shop/test_cart.py"),
        ("src/x", "src/cart.ts", "src/cart.test.ts"),
        ("src/x", "src/cart.jsx", "src/cart.test.jsx"),
        ("shop/x", "shop/cart.go", "shop/cart_test.go"),
        ("src/main/java/a/x", "src/main/java/a/Cart.java", "src/test/java/a/CartTest.java"),
    ],
)
def test_a_new_file_lies_where_the_project_keeps_its_tests(
    tmp_path: Path, there: str, source: str, expected: str
) -> None:
    write(tmp_path, there)
    assert place(tmp_path, source) == (expected, None)


@pytest.mark.parametrize(
    "existing",
    ["tests/test_cart.py", "tests/sub/test_cart.py", "shop/sub/tests/test_cart.py"],
)
def test_a_file_that_is_there_comes_first(tmp_path: Path, existing: str) -> None:
    write(tmp_path, "tests/x")
    write(tmp_path, existing, "import cart\n")
    assert place(tmp_path, "shop/sub/cart.py") == (existing, "import cart\n")


@pytest.mark.parametrize("source", ["a/lib.rs", "a/cart.c", "tests/test_cart.py", "a/cart_test.go"])
def test_of_some_files_there_is_no_place(tmp_path: Path, source: str) -> None:
    write(tmp_path, "a/x")
    assert place(tmp_path, source) is None


def test_what_is_ignored_or_secret_is_neither_read_nor_made(tmp_path: Path) -> None:
    write(tmp_path, ".gitignore", "tests/\n")
    write(tmp_path, "tests/test_cart.py", "import cart\n")
    write(tmp_path, "test/test_cart.py", "token = 'ghp_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8'\n")
    write(tmp_path, "shop/x")
    assert place(tmp_path, "shop/cart.py") == ("shop/test_cart.py", None)


def test_folders_that_are_links_lead_nowhere(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (root / "shop").mkdir(parents=True)
    (root / "tests").symlink_to(outside)
    assert place(root, "shop/cart.py") == ("shop/test_cart.py", None)
    write(outside, "test_cart.py", "import cart\n")
    assert place(root, "shop/cart.py") == ("shop/test_cart.py", None)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("test_a.py", True),
        ("a_test.go", True),
        ("a.spec.ts", True),
        ("ATest.java", True),
        ("tests/helpers.py", True),
        ("latest.py", False),
        ("Contest.java", False),
        ("attest.go", False),
    ],
)
def test_tests_are_known_by_their_names(name: str, is_one: bool) -> None:
    assert is_test(PurePosixPath(name)) is is_one


@pytest.mark.parametrize(
    ("name", "text", "added", "after"),
    [
        ("a.py", "x\n", "y\n\n", "x\n\n\ny\n"),
        ("a.py", "x", "y", "x\n\n\ny\n"),
        ("a.py", "", "\ny", "y\n"),
        ("a_test.go", "x\n", "y", "x\n\ny\n"),
        (
            "ATest.java",
            "class A {\n    x\n}\n",
            "y {\n}",
            "class A {\n    x\n\n    y {\n    }\n}\n",
        ),
    ],
)
def test_where_new_tests_stand(name: str, text: str, added: str, after: str) -> None:
    at, new = with_added(text, added, PurePosixPath(name))
    assert text[:at] + new + text[at:] == after
