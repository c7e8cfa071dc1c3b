"""How many cases a property draws: a stated sample in `make test`, all in `make test-long`."""

import os

from hypothesis import HealthCheck, settings

FULL = os.environ.get("QCN_TEST_FULL") == "1"


def count(*, sample: int, full: int) -> int:
    """Return the number of cases to draw in this run."""
    return full if FULL else sample


def examples(*, sample: int, full: int) -> settings:
    """Return hypothesis settings for a property; mark the test `long` as well.

    Time limits are off: a slow machine is no failure. Draws are derived from the test's name,
    so that a failure seen on one machine is seen on every machine.
    """
    return settings(
        max_examples=count(sample=sample, full=full),
        deadline=None,
        derandomize=True,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        report_multiple_bugs=False,
    )
