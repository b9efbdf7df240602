"""Means with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from statistics import mean, stdev

# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
Interval = tuple[float, float | None] | None  # mean and half-width of its 95% interval; None: unknown


def interval(values: Sequence[float | None]) -> Interval:
    """Mean and half-width of its 95% interval (Student's t); no width for a single value, None if a value is missing.

    More than 31 values have the quantile of 31, which makes their interval at most 5% too wide.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    if len(known) == 1:
        return known[0], None
    return mean(known), _quantile(len(known)) * stdev(known) / len(known) ** 0.5


def _quantile(count: int) -> float:
    return STUDENT[min(count - 1, len(STUDENT)) - 1]


def values_needed(values: Sequence[float]) -> int | None:
    """Number of values with the mean and the standard deviation of `values` whose 95% interval excludes zero.

    None: fewer than two values, or a mean of zero.
    """
    if len(values) < 2 or mean(values) == 0:
        return None
    ratio = stdev(values) / abs(mean(values))
    for count in range(2, len(STUDENT) + 2):
        if _quantile(count) * ratio < count**0.5:
            return count
    return floor((STUDENT[-1] * ratio) ** 2) + 1
