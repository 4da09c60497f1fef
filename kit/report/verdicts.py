"""What a difference says of a claim, by rules that are stated before anybody looks.

A verdict needs evidence in one direction or the other; where the runs do not tell, it says so.
"""

from typing import Literal

from kit.differences import Difference

Verdict = Literal["reproduced", "not reproduced", "undecided", "not testable here"]
LEVEL = 0.05


def is_above(found: Difference, threshold: float = 0.0) -> Verdict:
    """That a difference is larger than the threshold: by its 95 % interval.

    >>> is_above(Difference(0.5, 0.01, 4, 5, is_paired=True)), is_above(Difference(0.5, 0.5, 4, 5, is_paired=True))
    ('reproduced', 'undecided')
    """
    interval = found.interval()
    if interval.low > threshold:
        return "reproduced"
    return "not reproduced" if interval.high < threshold else "undecided"


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


def all_of(*verdicts: Verdict) -> Verdict:
    """Of a claim that says several things: as sure as the least of them, and false if one of them is.

    >>> all_of("reproduced", "undecided"), all_of("not reproduced", "undecided")
    ('undecided', 'not reproduced')
    """
    for verdict in ("not reproduced", "not testable here", "undecided"):
        if verdict in verdicts:
            return verdict
    return "reproduced"
