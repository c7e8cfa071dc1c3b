"""ARCHITECTURE.md tells the truth: its paths exist and each invariant has its check."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from deadlines import DEADLINE_SECONDS

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
INVARIANTS = re.findall(
    r"^\| ([a-z0-9-]*-[a-z0-9-]+) \| .+ \| ((?:contract|`tests/).+) \|$", ARCHITECTURE, re.MULTILINE
)
TEST_REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def contract_names() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {contract["name"] for contract in project["tool"]["importlinter"]["contracts"]}


def test_every_row_of_the_table_is_understood() -> None:
    table = ARCHITECTURE.partition("## Invariants")[2]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(INVARIANTS) >= 10


@pytest.mark.parametrize(("name", "check"), INVARIANTS)
def test_every_invariant_has_its_check(name: str, check: str) -> None:
    contracts = re.findall(r'contract "([^"]+)"', check)
    tests = TEST_REFERENCE.findall(check)
    assert contracts or tests, f"{name} names neither a contract nor a test"
    assert set(contracts) <= contract_names()
    for path, test in tests:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(?:async )?def {test}\(", source, flags=re.MULTILINE)


def test_every_path_on_the_map_exists() -> None:
    rows = re.findall(r"^\| `([\w./-]+)` \|", ARCHITECTURE, flags=re.MULTILINE)
    assert rows
    assert [path for path in rows if not (ROOT / path).exists()] == []


def test_no_root_folder_of_packages_is_a_package_itself() -> None:
    """Hugging Face's `kernels`, which transformers imports, would be shadowed."""
    for folder in ("inference", "kernels", "indexer"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_the_server_imports_where_torch_cannot(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['torch'] = sys.modules['qcn_inference'] = None; "
    subprocess.run(
        [sys.executable, "-c", blocked + "import qcn_lsp.server, qcn_lsp.cli"],
        check=True,
        cwd=tmp_path,
        timeout=DEADLINE_SECONDS,
    )
