"""Win rates: outcomes by hand, and the length-controlled rate against cases that a pencil can solve."""

import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.winrate import length_controlled_win_rate, outcome, win_rate


@pytest.mark.parametrize(
    ("utility", "baseline", "expected"), [(1.0, 0.0, 1.0), (-2.0, -1.0, 0.0), (0.25, 0.25, 0.5), (1, 2, 0.0)]
)
def test_an_outcome_is_a_win_a_loss_or_a_tie(utility: float, baseline: float, expected: float) -> None:
    assert outcome(utility, baseline) == expected


def test_win_rate_by_hand() -> None:
    assert win_rate([3.0, 1.0, 0.0, 2.0, 2.0], [1.0, 1.0, 5.0, 1.0, 0.0]) == 0.7  # (1 + .5 + 0 + 1 + 1) / 5


def test_win_rate_of_nothing_against_nan_or_of_unequal_lists_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        win_rate([], [])
    with pytest.raises(ValueError, match="came nan and"):
        win_rate([math.nan], [1.0])
    with pytest.raises(ValueError, match="zip"):
        win_rate([1.0, 2.0], [1.0])


def test_length_controlled_win_rate_by_hand() -> None:
    # Lengths differ by +6 or -6, so tanh(d / s) = +t or -t, and a line through two points fits exactly:
    # a + b t = logit .9 = ln 9 and a - b t = logit .5 = 0, so a = ln 3 and sigma(a) = 3/4. The plain rate is .7.
    outcomes = [1.0] * 9 + [0.0] + [1.0] * 5 + [0.0] * 5
    differences = [6.0] * 10 + [-6.0] * 10
    assert fmean(outcomes) == 0.7
    assert length_controlled_win_rate(outcomes, differences, ridge=1e-12) == pytest.approx(0.75, abs=1e-8)


def test_two_lengths_of_unequal_weight_by_hand() -> None:
    # d = +1 in 3 of 4 prompts, -1 in 1 of 4: mean .5, variance 1 - .25, s = sqrt(.75). Again t and -t, so with rates
    # 2/3 (logit ln 2) and 3/4 (logit ln 3) the intercept is (ln 2 + ln 3) / 2: odds sqrt(6).
    outcomes = [1.0] * 8 + [0.0] * 4 + [1.0] * 3 + [0.0]
    found = length_controlled_win_rate(outcomes, [1.0] * 12 + [-1.0] * 4, ridge=1e-12)
    assert found == pytest.approx(math.sqrt(6) / (1 + math.sqrt(6)), abs=1e-8)


def test_three_lengths_satisfy_the_equations_of_the_likelihood() -> None:
    # Differences -2, 0, 5, four of each: mean 1, variance (9 + 1 + 16) / 3; rates 1/4, 3/4, 3/4. At the maximum the
    # residuals sum to zero (equation for a), and so do the residuals times tanh(d / s) (equation for b).
    inputs = [math.tanh(d / math.sqrt(26 / 3)) for d in (-2, 0, 5)]
    outcomes = [1.0, 0.0, 0.0, 0.0, *[1.0, 1.0, 1.0, 0.0] * 2]
    rate = length_controlled_win_rate(outcomes, [-2.0] * 4 + [0.0] * 4 + [5.0] * 4, ridge=1e-12)

    def residuals(b: float) -> list[float]:
        odds = [rate / (1 - rate) * math.exp(b * t) for t in inputs]
        return [o / (1 + o) - true for o, true in zip(odds, (0.25, 0.75, 0.75), strict=True)]

    low, high = 0.0, 10.0  # b from its equation, by bisection; then a has to satisfy the other
    for _ in range(100):
        b = (low + high) / 2
        rising = sum(t * r for t, r in zip(inputs, residuals(b), strict=True))
        low, high = (b, high) if rising < 0 else (low, b)
    assert sum(residuals(low)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("difference", [0.0, 5.0, -3.0])
def test_equal_differences_leave_the_plain_win_rate(difference: float) -> None:
    assert length_controlled_win_rate([1.0, 0.5, 0.0, 1.0, 1.0], [difference] * 5) == pytest.approx(0.7, abs=1e-8)


def test_a_policy_that_wins_by_length_alone_is_worth_a_half() -> None:
    # Longer by 5 it wins 4 in 5, shorter by 5 it wins 1 in 5; it is longer on most prompts.
    outcomes = ([1.0] * 4 + [0.0]) * 9 + [1.0] + [0.0] * 4
    differences = [5.0] * 45 + [-5.0] * 5
    assert fmean(outcomes) == 0.74
    assert length_controlled_win_rate(outcomes, differences, ridge=1e-12) == pytest.approx(0.5, abs=1e-8)


def test_length_that_tells_wins_from_losses_gives_no_overflow() -> None:
    # By symmetry the intercept is 0.
    assert length_controlled_win_rate([1.0, 1.0, 0.0, 0.0], [3.0, 3.0, -3.0, -3.0]) == pytest.approx(0.5, abs=1e-8)
    assert 0 < length_controlled_win_rate([1.0] * 50 + [0.0], [9.0] * 50 + [-1.0], ridge=1e-6) < 1


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_only_wins_or_only_losses_stay_so(rate: float) -> None:
    assert length_controlled_win_rate([rate] * 3, [1.0, 2.0, -4.0]) == rate


MANY = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(-40, 40)), min_size=1, max_size=30)


@given(MANY)
def test_seen_from_the_other_side_the_rates_sum_to_one(pairs: list[tuple[float, int]]) -> None:
    outcomes, differences = [y for y, _ in pairs], [d for _, d in pairs]
    there = length_controlled_win_rate(outcomes, differences)
    back = length_controlled_win_rate([1 - y for y in outcomes], [-d for d in differences])
    assert there + back == pytest.approx(1, abs=1e-6)


@given(MANY, st.sampled_from([0.25, 3.0]))
def test_the_unit_of_length_cancels(pairs: list[tuple[float, int]], unit: float) -> None:
    outcomes, differences = [y for y, _ in pairs], [d for _, d in pairs]
    assert length_controlled_win_rate(outcomes, [unit * d for d in differences]) == pytest.approx(
        length_controlled_win_rate(outcomes, differences), abs=1e-6
    )


@pytest.mark.parametrize(
    ("outcomes", "differences", "ridge", "message"),
    [
        ([], [], 0.01, "at least one"),
        ([1.0], [], 0.01, "each of 0 differences"),
        ([1.5], [0.0], 0.01, r"\[0, 1\]"),
        ([math.nan], [0.0], 0.01, r"\[0, 1\]"),
        ([1.0, 0.0], [0.0, math.inf], 0.01, "finite lengths"),
        ([1.0, 0.0], [0.0, 1.0], 0.0, "ridge > 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    outcomes: list[float], differences: list[float], ridge: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        length_controlled_win_rate(outcomes, differences, ridge=ridge)
