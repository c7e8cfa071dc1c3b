"""Which tests touch a change: measured by coverage.py where the project has it, else by names."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath

from qcn_lsp.proving.toolchains import Toolchain

DATA = "/tmp/qcn-coverage"
CONFIG = "/tmp/qcn-coverage.ini"
REPORT = "/tmp/qcn-coverage.json"
# The context of a line is the test function that executes it.
CONFIG_TEXT = f"[run]\ndynamic_context = test_function\ndata_file = {DATA}\n"


def has_coverage(tools: Toolchain) -> bool:
    """Return whether coverage.py is installed in the project's environment."""
    folder = tools.site_packages
    return folder is not None and (folder / "coverage" / "__init__.py").is_file()


def measured(command: list[str]) -> list[str]:
    """Return `command` (`PYTHON -m MODULE …`) so that coverage.py measures it."""
    python, rest = command[0], command[1:]
    return [python, "-m", "coverage", "run", f"--rcfile={CONFIG}", *rest]


def report_command(tools: Toolchain) -> list[str]:
    """Return the command that writes `REPORT`."""
    options = [f"--rcfile={CONFIG}", "--show-contexts", "-q", "-o", REPORT]
    return [str(tools.interpreter), "-m", "coverage", "json", *options]


def by_coverage(
    report: bytes, changed: Mapping[str, Collection[int]], tests: Iterable[str]
) -> frozenset[str] | None:
    """Return the tests that execute a changed line; None where the report is of no use."""
    try:
        files = json.loads(report)["files"]
        contexts = {
            context
            for path, lines in changed.items()
            for number in lines
            for context in files.get(path, {}).get("contexts", {}).get(str(number), [])
            if isinstance(context, str) and context
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return frozenset(test for test in tests if _is_of(test, contexts))


def _is_of(test: str, contexts: set[str]) -> bool:
    """Return whether one of the contexts (`module.function`) is that test (`folder.module.…`)."""
    name = test.partition("[")[0]
    return any(name == context or name.endswith(f".{context}") for context in contexts)


def by_imports(
    changed: Iterable[str], tests: Iterable[str], texts: Mapping[str, str]
) -> frozenset[str]:
    """Return the tests in files that name a changed module; `texts`: path to text of test files."""
    words = [_module_word(path) for path in changed]
    touching = {
        module(path)
        for path, text in texts.items()
        if any(re.search(rf"\b{re.escape(word)}\b", text) for word in words)
    }
    return frozenset(
        test for test in tests if any(test.startswith(f"{name}.") for name in touching)
    )


def module(path: str) -> str:
    """Return the dotted name of a test file, as pytest's reports begin those of its tests."""
    return path.removesuffix(".py").replace("/", ".")


def _module_word(path: str) -> str:
    file = PurePosixPath(path)
    return file.parent.name if file.stem == "__init__" else file.stem
