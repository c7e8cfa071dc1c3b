"""How near a suggestion comes to the line that was there, and how sure a mean of it is."""

import difflib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.96  # of a normal distribution, 95 % lie within so many standard deviations


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float


def is_exact(suggested: str, expected: str) -> bool:
    """Return whether a line came out as it was, white space at its ends aside."""
    return suggested.strip() == expected.strip()


def similarity(suggested: str, expected: str) -> float:
    """Return difflib's ratio: twice what the two share over both lengths, so 1 for the same."""
    pair = suggested.strip(), expected.strip()
    return difflib.SequenceMatcher(None, *pair, autojunk=False).ratio()


def share(hits: int, count: int) -> Estimate:
    """Return a share with Wilson's interval, which also holds near 0 and 1; `count` is at least 1.

    E. B. Wilson, Probable Inference, JASA 22, 1927.
    """
    middle = (hits + Z * Z / 2) / (count + Z * Z)
    spread = hits * (count - hits) / count + Z * Z / 4
    half = Z * math.sqrt(spread) / (count + Z * Z)
    value = hits / count  # at 0 and 1 an end of the interval, but for rounding
    return Estimate(value, min(value, max(0.0, middle - half)), max(value, min(1.0, middle + half)))


def mean(values: Sequence[float], least: float, most: float) -> Estimate:
    """Return a mean with the interval of the normal distribution, within what values may be.

    Of one value nothing is known but that.
    """
    value = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(value, least, most)
    half = Z * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(value, max(least, value - half), min(most, value + half))
