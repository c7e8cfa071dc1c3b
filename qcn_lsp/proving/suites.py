"""Which command runs a project's tests: told from its files alone, nothing is executed."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from qcn_indexer.files import read_file

from qcn_lsp.proving.toolchains import Toolchain, toolchain

MAX_CONFIG = 1 << 20
_TEST_FOLDERS = ("tests", "test", "testing", ".")
_TEST_FILES = ("test_*.py", "*_test.py", "tests.py")
_NO_TESTS_OF_NPM = "no test specified"


@dataclass(frozen=True)
class TestSuite:
    """A way to run tests: `runner` is one of `pytest`, `unittest`, `npm`, `go`, `cargo`, `maven`
    and `gradle`.

    `only`: these files (paths below the root) instead of all, where the runner can choose:
    pytest and unittest.
    """

    __test__ = False  # no test of pytest's

    runner: str
    only: tuple[str, ...] = ()

    @property
    def names_tests(self) -> bool:
        """Return whether the runner tells of each test: then a run that names none is no success.

        A suite can end well without having run a test.
        """
        return self.runner in ("pytest", "unittest", "go", "cargo")

    def command(self, tools: Toolchain, report: str) -> list[str]:
        """Return the command line; pytest writes its report to `report`."""
        python = [str(tools.interpreter), "-m"]
        if self.runner == "pytest":
            options = ["-p", "no:cacheprovider", "--color=no", "-q", f"--junitxml={report}"]
            return [*python, "pytest", *options, *self.only]
        if self.runner == "unittest":
            return [*python, "unittest", "-v", *self.only]
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
        *(["npm"] if _npm_has_tests(root) else []),
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


def _npm_has_tests(root: Path) -> bool:
    try:
        script = json.loads(_text(root / "package.json") or "{}").get("scripts", {}).get("test", "")
        return bool(script) and _NO_TESTS_OF_NPM not in script
    except (ValueError, AttributeError, TypeError, RecursionError):
        return False


def _text(path: Path) -> str:
    """Return a file's text; nothing where it is none."""
    try:
        return read_file(path, limit=MAX_CONFIG).decode("utf-8", "replace")
    except OSError:
        return ""
