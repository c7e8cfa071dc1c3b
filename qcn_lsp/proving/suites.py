"""Which command runs a project's tests: told from its files alone, nothing is executed."""

import json
import tomllib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from qcn_indexer.files import read_file

from qcn_lsp.proving.toolchains import Toolchain, toolchain

MAX_CONFIG = 1 << 20
_TEST_FOLDERS = ("tests", "test", "testing", ".")
_TEST_FILES = ("test_*.py", "*_test.py", "tests.py")
MAX_LOOKED_AT = 100
_NO_TESTS_OF_NPM = "no test specified"


@dataclass(frozen=True)
class TestSuite:
    """A way to run tests: `runner` is one of `pytest`, `unittest`, `node` (its own runner), `npm`,
    `go`, `cargo`, `maven` and `gradle`.

    `only`: these files (paths below the root) instead of all, where the runner can choose:
    pytest, unittest and node.
    """

    __test__ = False  # no test of pytest's

    runner: str
    only: tuple[str, ...] = ()

    @property
    def names_tests(self) -> bool:
        """Return whether the runner tells of each test: then a run that names none is no success.

        A suite can end well without having run a test.
        """
        return self.runner in ("pytest", "unittest", "node", "go", "cargo")

    @property
    def writes_report(self) -> bool:
        """Return whether the runner tells of each test in a file of its own."""
        return self.runner in ("pytest", "node")

    def command(self, tools: Toolchain, report: str) -> list[str]:
        """Return the command line; pytest and node write their report to `report`."""
        python = [str(tools.interpreter), "-m"]
        if self.runner == "pytest":
            options = ["-p", "no:cacheprovider", "--color=no", "-q", f"--junitxml={report}"]
            return [*python, "pytest", *options, *self.only]
        if self.runner == "unittest":
            return [*python, "unittest", "-v", *self.only]
        if self.runner == "node":
            told = ["--test-reporter=spec", "--test-reporter-destination=stdout"]
            written = ["--test-reporter=junit", f"--test-reporter-destination={report}"]
            return ["node", "--test", *told, *written, *self.only]
        return {
            "npm": ["npm", "test"],
            "go": ["go", "test", "-json", "./..."],
            "cargo": ["cargo", "test", "--offline"],
            "maven": [
                *("mvn", "--batch-mode", "--offline", "test"),
                f"-Dmaven.repo.local={Path.home() / '.m2' / 'repository'}",
            ],
            "gradle": ["gradle", "--offline", "--no-daemon", "test"],
        }[self.runner]


def find_suites(root: Path) -> tuple[TestSuite, ...]:
    """Return the ways to run tests of the project in `root`, the likeliest first."""
    runners = [
        *_of_python(root),
        *_of_node(root),
        *(["go"] if (root / "go.mod").is_file() else []),
        *(["cargo"] if (root / "Cargo.toml").is_file() else []),
        *(["maven"] if (root / "pom.xml").is_file() else []),
        *(["gradle"] if any(root.glob("build.gradle*")) else []),
    ]
    return tuple(map(TestSuite, runners))


def _of_python(root: Path) -> list[str]:
    if _is_for_pytest(root):
        return ["pytest"]
    if not _has_test_files(root):
        return []
    return ["pytest", "unittest"] if _has_pytest(toolchain(root)) else ["unittest"]


def _is_for_pytest(root: Path) -> bool:
    """Return whether a file configures pytest."""
    if any((root / name).is_file() for name in ("pytest.ini", ".pytest.ini", "conftest.py")):
        return True
    if any((root / folder / "conftest.py").is_file() for folder in _TEST_FOLDERS):
        return True
    if "[tool:pytest]" in _text(root / "setup.cfg") or "[pytest]" in _text(root / "tox.ini"):
        return True
    try:
        return "pytest" in tomllib.loads(_text(root / "pyproject.toml")).get("tool", {})
    except (tomllib.TOMLDecodeError, TypeError):
        return False


def _has_pytest(tools: Toolchain) -> bool:
    places = (
        [tools.site_packages] if tools.site_packages else [Path("/usr/lib/python3/dist-packages")]
    )
    return any((place / "pytest" / "__init__.py").is_file() for place in places)


def _has_test_files(root: Path) -> bool:
    return any(
        next((root / folder).glob(pattern), None) is not None
        for folder in _TEST_FOLDERS
        for pattern in _TEST_FILES
    )


def _of_node(root: Path) -> list[str]:
    """The package's own command; node by itself where that is all it does, for it names tests."""
    script = _test_script(root)
    if script:
        return ["node", "npm"] if script.split() == ["node", "--test"] else ["npm"]
    return ["node"] if _has_tests_of_node(root) else []


def _test_script(root: Path) -> str:
    try:
        script = json.loads(_text(root / "package.json") or "{}").get("scripts", {}).get("test", "")
        return script if isinstance(script, str) and _NO_TESTS_OF_NPM not in script else ""
    except (ValueError, AttributeError, TypeError, RecursionError):
        return ""


def _has_tests_of_node(root: Path) -> bool:
    return any(
        "node:test" in _text(path)
        for folder in _TEST_FOLDERS
        for suffix in ("js", "mjs", "cjs")
        for path in islice((root / folder).glob(f"*.test.{suffix}"), MAX_LOOKED_AT)
    )


def _text(path: Path) -> str:
    """Return a file's text; nothing where it is none."""
    try:
        return read_file(path, limit=MAX_CONFIG).decode("utf-8", "replace")
    except OSError:
        return ""
