"""Which lines are asked for: those whose rest uses a name that an imported file alone defines."""

from pathlib import Path, PurePosixPath

from qcn_indexer.read import Text, read_text

from qcn_lsp.evaluation.lines import Line, lines_with_names_of_others, owners

SHOP, PRICES, OTHER = (PurePosixPath(name) for name in ("shop.py", "lib/prices.py", "lib/other.py"))
FILES = {
    PRICES: "def price_of(item):\n    return item.price\n\n\ndef shared_name():\n    return None\n",
    OTHER: "class Basket:\n    pass\n\n\ndef shared_name():\n    return 1\n",
    SHOP: (
        "from lib.prices import price_of, shared_name\n\n\n"
        "def total(items):\n"
        "    \n"
        "    result = sum(price_of(item) for item in items)\n"
        "    basket = Basket(result)\n"
        "    count = shared_name()\n"
        "    # a comment = price_of(None)\n"
        "    return price_of(items[0]) + count\n" + "\n".join(f"a{n} = {n}" for n in range(20))
    ),
}


def _written(root: Path) -> dict[PurePosixPath, str]:
    texts = {}
    for path, text in FILES.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text)
        read = read_text(root / path)
        assert isinstance(read, Text)
        texts[path] = read.text
    return texts


def test_a_line_needs_a_name_that_one_imported_file_alone_defines(tmp_path: Path) -> None:
    """Not `Basket`, whose file is not imported; not `shared_name`, which two files define."""
    lines = lines_with_names_of_others(tmp_path, _written(tmp_path))
    assert sorted(lines, key=lambda line: line.number) == [
        Line(SHOP, 5, "    result = ", "sum(price_of(item) for item in items)", "price_of", PRICES),
        Line(SHOP, 9, "    return ", "price_of(items[0]) + count", "price_of", PRICES),
    ]


def test_the_same_lines_come_in_the_same_order_whatever_the_files_come_in(tmp_path: Path) -> None:
    texts = _written(tmp_path)
    turned = dict(reversed(texts.items()))
    assert lines_with_names_of_others(tmp_path, texts) == lines_with_names_of_others(
        tmp_path, turned
    )


def test_definitions_of_several_languages() -> None:
    texts = {
        PurePosixPath("a.go"): "func Parse(text string) error {\n}\ntype Reader struct {\n}\n",
        PurePosixPath("b.rs"): "pub fn parse_all(text: &str) -> u32 {\n}\n",
        PurePosixPath("c.ts"): "export class Window {\n}\nexport const limit = 3\n",
        PurePosixPath("d.c"): "static int read_line(FILE *file) {\n}\n",
    }
    assert {name: path.name for name, path in owners(texts).items()} == {
        "Parse": "a.go",
        "Reader": "a.go",
        "parse_all": "b.rs",
        "Window": "c.ts",
        "limit": "c.ts",
        "read_line": "d.c",
    }
