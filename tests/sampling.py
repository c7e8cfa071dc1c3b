"""How many cases a property draws: a stated sample in `make test`, all in `make test-long`."""

import os

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

# Beside its own, hypothesis draws constants that it finds in the source of whatever of ours has
# been imported by then: other ones in each worker, and after each commit. A test would fail here
# and not there. Failures that nobody has seen are looked for with new seeds, not by chance.
assert "is_local_module_file" in vars(providers), "this hypothesis calls it otherwise"
vars(providers)["is_local_module_file"] = lambda path: False

# For a property that states no count, too: the default would judge it by its time.
settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("steady")

FULL = os.environ.get("QCN_TEST_FULL") == "1"


def count(*, sample: int, full: int) -> int:
    """Return the number of cases to draw in this run."""
    return full if FULL else sample


def examples(*, sample: int, full: int) -> settings:
    """Return hypothesis settings for a property; mark the test `long` as well.

    Time limits are off: a slow machine is no failure. Draws are derived from the test's name and
    source, so that a failure seen on one machine is seen on every machine.
    """
    return settings(
        max_examples=count(sample=sample, full=full),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        report_multiple_bugs=False,
    )
