"""What is known of a fix: the level it reached, and what was not checked."""

from dataclasses import dataclass, field
from enum import IntEnum


class Level(IntEnum):
    """The ladder. A level is reached when all that is asked below it holds as well."""

    APPLIES = 1
    PARSES = 2
    GONE = 3  # for a rule that is a witness of the weakness, not a hint near it
    TESTS = 4
    EXPLOIT = 5  # a test that exploits the weakness fails before and passes after


@dataclass(frozen=True)
class Tests:
    """How many of the project's tests passed before and after; of those, how many touch the change.

    `touching` is None where it is not known which lines a test runs.
    """

    passed: int
    touching: int | None


@dataclass(frozen=True)
class Evidence:
    """What a fix has shown. `unchecked` are sentences: what was not checked, and why."""

    level: Level
    tests: Tests | None = None
    unchecked: tuple[str, ...] = field(default=())
