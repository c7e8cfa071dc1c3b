"""Which command runs a project's tests: told from its files alone, nothing is executed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TestSuite:
    """A way to run tests: `runner` is `pytest`, `unittest`, `npm`, `go`, `cargo`, `maven`…

    `only`: these files (paths below the root) instead of all, where the runner can choose.
    """

    __test__ = False  # no test of pytest's

    runner: str
    only: tuple[str, ...] = ()


def find_suites(root: Path) -> tuple[TestSuite, ...]:
    """Return the ways to run tests of the project in `root`, the likeliest first."""
    raise NotImplementedError
