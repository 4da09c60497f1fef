"""What numbers say of a claim, by rules that are stated before anybody looks.

A verdict needs evidence in one direction or the other; where the runs do not tell, it says so.
"""

from typing import Literal

from kit.differences import Difference
from kit.statistics import Interval

Verdict = Literal["reproduced", "not reproduced", "undecided", "not testable here"]
LEVEL = 0.05


def is_above(found: Interval, threshold: float = 0.0) -> Verdict:
    """That something is larger than the threshold, by its interval.

    >>> is_above(Interval(0.5, 0.4, 0.6, n=5)), is_above(Interval(0.5, -0.1, 1.1, n=5))
    ('reproduced', 'undecided')
    """
    if found.low > threshold:
        return "reproduced"
    return "not reproduced" if found.high < threshold else "undecided"


def is_below(found: Interval, threshold: float = 0.0) -> Verdict:
    """That something is smaller than the threshold, by its interval.

    >>> is_below(Interval(0.5, 0.4, 0.6, n=5), 0.7), is_below(Interval(0.5, 0.4, 0.6, n=5), 0.3)
    ('reproduced', 'not reproduced')
    """
    if found.high < threshold:
        return "reproduced"
    return "not reproduced" if found.low > threshold else "undecided"


def is_equal(found: Difference, margin: float) -> Verdict:
    """That a difference is smaller than the margin: by two one-sided tests; it is larger if its 95 % interval says so.

    >>> is_equal(Difference(0.01, 0.01, 4, 5, is_paired=True), 0.05)
    'reproduced'
    >>> is_equal(Difference(0.01, 0.1, 4, 5, is_paired=True), 0.05)
    'undecided'
    >>> is_equal(Difference(0.5, 0.1, 4, 5, is_paired=True), 0.05)
    'not reproduced'
    """
    if found.p_equivalent(margin) <= LEVEL:
        return "reproduced"
    interval = found.interval()
    return "not reproduced" if interval.low > margin or interval.high < -margin else "undecided"
