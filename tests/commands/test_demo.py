"""`qcn demo`: the whole chain on a small repository, and the choice of its places."""

import ast
import io
import itertools
import re
from pathlib import Path

import pytest
from command_support import qcn
from link_support import StandInModel, processes_of, until
from rich.console import Console
from standin_endpoint import endpoint

from qcn_lsp.cli import main
from qcn_lsp.commands.demo import Outcome, table_of
from qcn_lsp.commands.places import Place, choose_places, places_in, source_files
from qcn_lsp.commands.session import Suggestion

SHOP = '''"""A shop.

total = "not code"
"""

import os


class Cart:
    def __init__(self, owner: str) -> None:
        # owner = "not code either"
        self.owner = owner.strip()
        self.items: list[int] = []

    def total(self) -> int:
        return sum(self.items)

    def add(self, price: int) -> None:
        if price < 0:
            raise ValueError("a price is positive")
        self.items.append(price)


def main() -> None:
    cart = Cart(os.environ["USER"])
    for price in range(10):
        cart.add(price)
    print(cart.total())
'''


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / "node_modules").mkdir(parents=True)
    (folder / "cart.py").write_text(SHOP)
    (folder / "node_modules" / "other.js").write_text("return something(else);\n" * 30)
    (folder / "notes.md").write_text("return something\n" * 30)
    return folder


class TestPlaces:
    def test_they_are_code_and_leave_something_to_guess(self, shop: Path) -> None:
        lines = SHOP.splitlines()
        found = places_in(shop / "cart.py")
        assert len({place.kind for place in found}) >= 4
        for place in found:
            assert place.before + place.rest == lines[place.line]
            assert len(place.rest) >= 4
            assert "not code" not in place.rest
        tree = ast.parse(SHOP)
        documented = range(tree.body[0].lineno, (tree.body[0].end_lineno or 0) + 1)
        assert not {place.line + 1 for place in found} & set(documented)

    def test_they_are_the_same_at_every_run_and_never_neighbours(self, shop: Path) -> None:
        first = choose_places(shop, count=6, per_file=6)
        assert first == choose_places(shop, count=6, per_file=6)
        lines = [place.line for place in first]
        assert lines == sorted(lines)
        assert all(after - before > 1 for before, after in itertools.pairwise(lines))

    def test_they_come_from_the_repositorys_own_source(self, shop: Path) -> None:
        assert source_files(shop) == [shop / "cart.py"]


async def test_it_shows_a_row_for_each_place_and_leaves_nothing_behind(
    standin: StandInModel, runtime: Path, shop: Path
) -> None:
    done = qcn("demo", shop)
    assert (done.returncode, done.stderr) == (0, "")
    rows = re.findall(r"^ cart\.py:(\d+) .* answer .* \d+ $", done.stdout, re.MULTILINE)
    expected = choose_places(shop, count=10, per_file=2)
    assert [int(row) for row in rows] == [place.line + 1 for place in expected]
    assert "small embedded model" in done.stdout
    assert f"0 of {len(expected)} lines" in done.stdout
    assert (shop / "cart.py").read_text() == SHOP
    await until(lambda: not processes_of(runtime))  # it was asked to leave


def test_names_of_files_are_printed_as_they_are(standin: StandInModel, tmp_path: Path) -> None:
    folder = tmp_path / "w[/y]:smile:"
    folder.mkdir(parents=True)
    (folder / "[id].py").write_text(SHOP)
    done = qcn("demo", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"places of {folder} through" in " ".join(done.stdout.split())
    assert "Completing [id].py:" in done.stdout


def test_with_another_server_it_says_so_and_starts_no_engine(runtime: Path, shop: Path) -> None:
    with endpoint() as model:
        done = qcn("demo", shop, "--engine-url", model.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"the model at {model.url}." in " ".join(done.stdout.split())
    assert "qcn-nano" not in done.stdout
    assert list((runtime / "qcn").glob("engine-*")) == []


async def test_a_checkpoints_folder_is_served_by_an_engine_of_its_own(
    standin: StandInModel, runtime: Path, shop: Path
) -> None:
    done = qcn("demo", shop, "--model", standin.folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"with {standin.folder}, on this machine" in " ".join(done.stdout.split())
    assert "small embedded model" not in done.stdout
    assert len(standin.pids()) == 1
    await until(lambda: not processes_of(runtime))  # it was asked to leave


def test_in_a_narrow_terminal_every_column_has_some_room(shop: Path) -> None:
    place = Place(shop / "cart.py", 7, 14, "call", "def name_that_is_long(", "self, price)")
    printed = io.StringIO()
    table = table_of([Outcome(place, Suggestion("items, prices)", 20.0))], shop)
    Console(width=50, file=printed).print(table)
    row = next(line for line in printed.getvalue().splitlines() if "cart.py:8" in line)
    assert all(part in row for part in ("def", "items", "self", "20"))


def test_it_leaves_an_engine_that_ran_before_alone(embedded: StandInModel, shop: Path) -> None:
    qcn("engine", "start")
    assert qcn("demo", cwd=shop).returncode == 0
    assert len(embedded.pids()) == 1
    assert embedded.events("shutdown") == []


async def test_it_completes_with_the_real_engine_and_the_embedded_model(
    runtime: Path, shop: Path
) -> None:
    done = qcn("demo", shop)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\d of 2 lines exactly as they were; median \d+ ms", done.stdout)
    await until(lambda: not processes_of(runtime))  # it was asked to leave


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "does not exist"),
        ("empty", "holds no source code"),
        ("short", "no file long enough to complete: one of 15 lines"),
    ],
)
def test_a_repository_without_code_is_an_error(
    tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.py").write_text("a = len(b)\n")
    assert main(["demo", str(tmp_path / name)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err


def test_an_engine_that_cannot_serve_ends_it_with_the_reason(
    embedded: StandInModel, shop: Path
) -> None:
    embedded.behave(state="errored", error="model.safetensors is cut short: download it again.")
    done = qcn("demo", shop)
    assert done.returncode == 1
    assert done.stderr == "qcn: model.safetensors is cut short: download it again.\n"
