"""Differences against published examples, scipy's own tests, and what can be worked out by hand."""

import math
import random
from typing import Any

import pytest
from scipy import stats

from kit.differences import Difference, difference, holm

scipy_stats: Any = stats  # its results are declared without their fields

# Student 1908, the additional hours of sleep of ten patients under two drugs (R's data set `sleep`). R 4: t.test(paired
# = TRUE) gives t = -4.0621, df = 9, p = 0.002833, [-2.4598858, -0.7001142]; Welch's t = -1.8608, df = 17.776,
# p = 0.07939, [-3.3654832, 0.2054832].
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def arm(values: list[float], first_seed: int = 0) -> dict[int, float]:
    return dict(enumerate(values, first_seed))


def test_paired_as_r_has_it() -> None:
    found = difference(arm(FIRST), arm(SECOND))
    assert found.is_paired and found.df == 9 and found.n == 10
    assert found.mean / found.standard_error == pytest.approx(-4.0621, abs=5e-5)
    assert found.p_value() == pytest.approx(0.002833, abs=5e-7)
    interval = found.interval()
    assert (interval.low, interval.high) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)


def test_welchs_as_r_has_it() -> None:
    found = difference(arm(FIRST), arm(SECOND, first_seed=100))
    assert not found.is_paired
    assert (found.df, found.p_value()) == (pytest.approx(17.776, abs=5e-4), pytest.approx(0.07939, abs=5e-6))
    interval = found.interval()
    assert (interval.low, interval.high) == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)


@pytest.mark.parametrize("seed", range(5))
def test_both_agree_with_scipys_tests(seed: int) -> None:
    rng = random.Random(seed)
    one, other = ([rng.gauss(0, 1 + i) for _ in range(3 + seed + i)] for i in (0, 1))
    welch, theirs = difference(arm(one), arm(other, 50)), scipy_stats.ttest_ind(one, other, equal_var=False)
    paired = difference(arm(one), arm(other[: len(one)]))
    theirs_paired = scipy_stats.ttest_rel(one, other[: len(one)])
    for ours, their in ((welch, theirs), (paired, theirs_paired)):
        assert ours.p_value() == pytest.approx(float(their.pvalue))
        low, high = their.confidence_interval(0.9)
        found = ours.interval(confidence=0.9)
        assert (found.low, found.high) == pytest.approx((float(low), float(high)))
    margin = 1.5
    shifted = [scipy_stats.ttest_rel([x + shift for x in one], other[: len(one)], alternative=side).pvalue
               for shift, side in ((margin, "greater"), (-margin, "less"))]  # fmt: skip
    assert paired.p_equivalent(margin) == pytest.approx(float(max(shifted)))


def test_the_90_percent_interval_says_the_same_as_the_two_tests() -> None:
    rng = random.Random(7)
    verdicts = set()
    for _ in range(200):
        found = difference(arm([rng.gauss(0, 1) for _ in range(4)]), arm([rng.gauss(0.2, 1) for _ in range(4)]))
        interval = found.interval(confidence=0.9)
        inside = interval.low > -1 and interval.high < 1
        assert (found.p_equivalent(1.0) < 0.05) == inside
        verdicts.add(inside)
    assert verdicts == {True, False}


def test_a_seed_that_only_one_arm_has_is_left_out_of_a_pair() -> None:
    found = difference({0: 1.0, 1: 2.0, 2: 100.0}, {1: 1.0, 0: 0.5})
    assert (found.mean, found.n) == (0.75, 2)


def test_what_every_seed_says_alike_is_sure() -> None:
    found = difference({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5})
    assert found.standard_error == 0 and found.p_value() == 0 and found.interval().low == 0.25
    assert found.p_equivalent(0.5) == 0 and found.p_equivalent(0.25) == 1 and found.p_equivalent(0.1) == 1
    same = difference({0: 0.5, 1: 0.75}, {0: 0.5, 1: 0.75})
    assert same.p_value() == 1 and same.p_equivalent(0.01) == 0


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({0: 1.0}, {0: 2.0}, r"two training seeds or more of each arm, came \[0\] and \[0\]"),
        ({0: 1.0, 1: 2.0}, {7: 2.0}, r"came \[0, 1\] and \[7\]"),
        ({0: 1.0, 1: math.nan}, {0: 2.0, 1: 1.0}, "finite numbers, came nan"),
    ],
)
def test_what_cannot_be_compared_is_refused(one: dict[int, float], other: dict[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        difference(one, other)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_a_margin_is_above_0(margin: float) -> None:
    with pytest.raises(ValueError, match="margin above 0"):
        Difference(0.0, 1.0, 2, 3, is_paired=True).p_equivalent(margin)


def test_holm_as_worked_out_by_hand() -> None:
    # m = 4: .01 x 4 = .04; .02 x 3 = .06; .03 x 2 = .06; .04 x 1 = .04, but not less than the one before it.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
