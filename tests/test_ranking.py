"""Ratings: by hand, against choix, against the equations of the likelihood, and the bootstrap by enumeration."""

import math
import random
from itertools import combinations

import pytest

from kit.ranking import Comparison, NotConnected, NotFinite, elo_intervals, elo_ratings


def games(first: str, second: str, wins: int, losses: int = 0, ties: int = 0) -> list[Comparison]:
    """That many comparisons, each on a prompt of its own."""
    outcomes = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [Comparison(f"{first} {second} {i}", first, second, y) for i, y in enumerate(outcomes)]


def test_two_runs_by_hand() -> None:
    # 10 wins to 1: odds of 10 are 400 points. A tie is half a win for each, so 9 wins and 2 ties are too.
    assert elo_ratings(games("a", "b", 10, 1), anchor="b", virtual_ties=0) == pytest.approx({"a": 1400, "b": 1000})
    assert elo_ratings(games("a", "b", 9, 0, 2), anchor="b", virtual_ties=0) == pytest.approx({"a": 1400, "b": 1000})


def test_chain_by_hand() -> None:
    # a beats b 2 to 1, b beats c 2 to 1, a beats c 4 to 1: strengths 4, 2, 1 fit exactly. log10(2) = 0.30103.
    found = elo_ratings(
        games("a", "b", 2, 1) + games("b", "c", 4, 2) + games("c", "a", 1, 4),
        anchor="c", anchor_rating=0.0, virtual_ties=0,
    )  # fmt: skip
    assert found == pytest.approx({"a": 800 * 0.3010299957, "b": 400 * 0.3010299957, "c": 0.0}, abs=1e-5)
    assert list(found) == ["a", "b", "c"]  # best first


def test_virtual_tie_is_half_a_win_for_each() -> None:
    # Never lost in 9: odds of 9.5 to 0.5, 19.
    found = elo_ratings(games("a", "b", 9), anchor="b")
    assert found["a"] - found["b"] == pytest.approx(400 * math.log10(19), abs=1e-3)
    twice = elo_ratings(games("a", "b", 9), anchor="b", virtual_ties=2)  # 10 to 1
    assert twice["a"] - twice["b"] == pytest.approx(400, abs=1e-3)


def test_choix_finds_the_same() -> None:
    # choix 0.4.1: opt_pairwise(4, data, alpha=0, method="Newton-CG", tol=1e-12) - that of a, times 400 / ln 10, + 1000.
    wins = {"ab": (7, 3), "bc": (6, 4), "cd": (5, 8), "ad": (4, 2), "ac": (9, 5)}
    data = [game for (first, second), counts in wins.items() for game in games(first, second, *counts)]
    expected = {"a": 1000.0, "b": 890.5144059818, "c": 853.8663261983, "d": 918.3345730115}
    assert elo_ratings(data, anchor="a", virtual_ties=0) == pytest.approx(expected, abs=1e-5)


def test_expected_wins_are_the_observed_ones_also_for_fractions() -> None:
    # The equations of the likelihood: for every run, the sum of its chances equals the sum of its outcomes.
    random_ = random.Random(1)
    data = [
        Comparison(str(prompt), first, second, random_.choice([0.0, 0.2, 0.5, 1.0]))
        for prompt in range(40)
        for first, second in random_.sample(list(combinations("abcde", 2)), 4)
    ]
    ratings = elo_ratings(data, anchor="c", virtual_ties=0)
    for run in "abcde":
        balance = 0.0
        for game in data:
            if run in (game.first, game.second):
                chance = 1 / (1 + 10 ** ((ratings[game.second] - ratings[game.first]) / 400))
                balance += (game.outcome - chance) * (1 if run == game.first else -1)
        assert balance == pytest.approx(0, abs=1e-6)
    swapped = [Comparison(c.prompt, c.second, c.first, 1 - c.outcome) for c in reversed(data)]
    assert elo_ratings(swapped, anchor="c", virtual_ties=0) == pytest.approx(ratings, abs=1e-6)


def test_interval_is_that_of_the_binomial() -> None:
    # 3 of 5 prompts won: a resample wins k ~ Binomial(5, .6). P(k = 0) = .010 < .025 < P(k <= 1) = .087, and
    # P(k = 5) = .078 > .025: the ends are k = 1 and k = 5. With the virtual tie, odds (k + .5) / (5.5 - k).
    found = elo_intervals(games("a", "b", 3, 2), anchor="b", seed=0, resamples=2000)
    expected = [1000 + 400 * math.log10((k + 0.5) / (5.5 - k)) for k in (3, 1, 5)]
    assert [found["a"].mean, found["a"].low, found["a"].high] == pytest.approx(expected, abs=1e-3)
    assert found["a"].n == 5
    assert (found["b"].low, found["b"].mean, found["b"].high) == (1000, 1000, 1000)


def test_comparisons_of_a_prompt_are_drawn_together() -> None:
    # Four equal comparisons a prompt: counts times four, but no more prompts than before.
    four = [game for game in games("a", "b", 3, 2) for _ in range(4)]
    found = elo_intervals(four, anchor="b", seed=0, resamples=2000)["a"]
    expected = [1000 + 400 * math.log10((4 * k + 0.5) / (20.5 - 4 * k)) for k in (3, 1, 5)]
    assert [found.mean, found.low, found.high] == pytest.approx(expected, abs=1e-3)
    assert found.n == 5


def test_resample_without_a_pair_stays_finite_and_the_seed_decides() -> None:
    data = games("a", "b", 1) + games("b", "c", 1)  # two prompts; half of the resamples draw one of them twice
    found = elo_intervals(data, anchor="b", seed=3)
    # In such a resample one pair has only its virtual tie: equal ratings. In the other it has 2.5 wins to 0.5.
    ends = [1000.0, 1000 + 400 * math.log10(5)]
    assert [found["a"].low, found["a"].high] == pytest.approx(ends, abs=1e-3)
    assert elo_intervals(data, anchor="b", seed=3) == found
    assert list(found) == ["a", "b", "c"]


def test_runs_that_nothing_relates_are_named() -> None:
    data = games("a", "b", 3, 2) + games("c", "d", 3, 2)
    with pytest.raises(NotConnected, match=r"relate all runs to 'a', came none for \['c', 'd'\]"):
        elo_ratings(data, anchor="a")
    with pytest.raises(NotConnected):
        elo_intervals(data, anchor="a", seed=0)


@pytest.mark.parametrize(
    "data",
    [
        games("a", "b", 3),  # never lost
        games("b", "a", 3),  # never won
        games("a", "b", 1, 1) + games("c", "d", 1, 1) + games("a", "c", 1) + games("b", "d", 1),  # two above two
    ],
)
def test_without_virtual_ties_infinite_ratings_are_named(data: list[Comparison]) -> None:
    with pytest.raises(NotFinite, match="virtual_ties > 0"):
        elo_ratings(data, anchor="a", virtual_ties=0)
    assert all(map(math.isfinite, elo_ratings(data, anchor="a").values()))


@pytest.mark.parametrize(
    ("data", "anchor", "virtual_ties", "message"),
    [
        ([], "a", 1.0, "expected comparisons with the anchor 'a'"),
        (games("a", "b", 1), "c", 1.0, r"came those of \['a', 'b'\]"),
        (games("a", "a", 1), "a", 1.0, "two different runs"),
        ([Comparison("p", "a", "b", 1.5)], "a", 1.0, r"outcome in \[0, 1\]"),
        ([Comparison("p", "a", "b", math.nan)], "a", 1.0, r"outcome in \[0, 1\]"),
        (games("a", "b", 1), "a", -1.0, "virtual_ties >= 0"),
        (games("a", "b", 1), "a", math.nan, "virtual_ties >= 0"),
    ],
)
def test_what_cannot_be_rated_is_refused(
    data: list[Comparison], anchor: str, virtual_ties: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        elo_ratings(data, anchor=anchor, virtual_ties=virtual_ties)


def test_interval_needs_virtual_ties_and_resamples() -> None:
    for virtual_ties, resamples in ((0.0, 10), (1.0, 0)):
        with pytest.raises(ValueError, match="virtual_ties > 0 and resamples >= 1"):
            elo_intervals(games("a", "b", 1), anchor="a", seed=0, virtual_ties=virtual_ties, resamples=resamples)


def test_one_resample_is_enough_to_draw_and_200_are_the_default() -> None:
    data = games("a", "b", 30, 20)
    single = elo_intervals(data, anchor="b", seed=0, resamples=1)["a"]
    assert single.low == single.high  # one draw, and both quantiles are it
    assert elo_intervals(data, anchor="b", seed=0) == elo_intervals(data, anchor="b", seed=0, resamples=200)
    assert elo_intervals(data, anchor="b", seed=0) != elo_intervals(data, anchor="b", seed=0, resamples=201)
