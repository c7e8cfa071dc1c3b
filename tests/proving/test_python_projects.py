"""A project of Python's with a virtual environment of its own, which has pytest and coverage."""

from pathlib import Path

import pytest
from proving_support import copy_packages, install, needs_bubblewrap, proving_ground, write

from qcn_lsp.proving import TestOutcome, find_suites

pytestmark = needs_bubblewrap

FILES = {
    "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["src"]\n',
    "src/shop/__init__.py": "",
    "src/shop/prices.py": (
        "def net(price):\n    return price - tax(price)\n\n\n"
        "def tax(price):\n    return price // 5\n\n\n"
        "def name():\n    return 'shop'\n"
    ),
    "tests/test_prices.py": (
        "import pytest\nfrom shop import prices\n\n\n"
        "@pytest.mark.parametrize('price', [5, 10])\n"
        "def test_tax(price):\n    assert prices.tax(price) == price / 5\n\n\n"
        "def test_net():\n    assert prices.net(10) == 8\n\n\n"
        "def test_name():\n    assert prices.name() == 'shop'\n\n\n"
        "def test_broken():\n    assert prices.name() == 'shed'\n"
    ),
}
TOUCHING = {
    "tests.test_prices.test_tax[5]",
    "tests.test_prices.test_tax[10]",
    "tests.test_prices.test_net",
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_packages(tmp_path_factory.mktemp("packages"))


async def run(root: Path, edits: dict[str, str]) -> TestOutcome:
    ground = await proving_ground()
    async with ground.deploy(root, edits) as view:
        return await view.run_tests(find_suites(root)[0], changed={"src/shop/prices.py": {6}})


async def test_coverage_tells_which_tests_execute_the_changed_line(
    tmp_path: Path, packages: Path
) -> None:
    root = write(tmp_path / "shop", FILES)
    install(root, packages)
    outcome = await run(root, {})
    assert outcome.failed == {"tests.test_prices.test_broken"}, outcome.run.log
    assert outcome.passed == {*TOUCHING, "tests.test_prices.test_name"}
    assert outcome.touching_by == "coverage"
    assert outcome.touching == frozenset(TOUCHING)


async def test_without_coverage_names_tell_and_it_says_so(tmp_path: Path, packages: Path) -> None:
    root = write(tmp_path / "shop", FILES)
    install(root, packages, "coverage")
    outcome = await run(root, {"src/shop/prices.py": FILES["src/shop/prices.py"] + "# edited\n"})
    assert outcome.touching_by == "imports"
    assert outcome.touching == outcome.passed | outcome.failed


@pytest.mark.parametrize(
    "hostile",
    [
        "import os; os._exit(0)",
        "import os; open('/tmp/qcn-report-1.xml', 'w').write('<a/>'); os._exit(0)",
        "import os; os.mkfifo('/tmp/qcn-report-1.xml'); os._exit(0)",
        "import os; os.symlink('/dev/zero', '/tmp/qcn-report-1.xml'); os._exit(0)",
        "import os; os.truncate(os.open('/tmp/qcn-report-1.xml', 65), 200 << 20); os._exit(0)",
    ],
)
async def test_a_suite_that_ends_well_without_running_a_test_has_not_passed(
    tmp_path: Path, packages: Path, hostile: str
) -> None:
    root = write(tmp_path / "shop", {"tests/conftest.py": hostile, "tests/test_a.py": ""})
    install(root, packages, "coverage")
    outcome = await run(root, {})
    assert outcome.run.succeeded
    assert not outcome.succeeded
    assert outcome.passed == set()


async def test_a_report_of_an_earlier_run_is_not_taken_for_a_later_ones(
    tmp_path: Path, packages: Path
) -> None:
    conftest = "import os\n\nif os.path.exists('stop'):\n    os._exit(0)\n"
    tests = {"tests/conftest.py": conftest, "tests/test_a.py": "def test_a(): pass\n"}
    root = write(tmp_path / "shop", tests)
    install(root, packages, "coverage")
    ground = await proving_ground()
    async with ground.deploy(root, {}) as view:
        assert (await view.run_tests(find_suites(root)[0])).succeeded
        await view.write("stop", "")
        assert not (await view.run_tests(find_suites(root)[0])).succeeded
