r"""Ratings of several runs from comparisons of two at a time: the Bradley-Terry model on the Elo scale.

.. math:: P(i \text{ beats } j) = \frac{1}{1 + 10^{-(R_i - R_j) / 400}}

so 400 points are odds of 10, and one unit of log-odds is 400 / ln 10 = 173.7 points. A comparison says only how far
apart two runs are, so one of them, the anchor, is given its rating. Bradley & Terry 1952, "Rank analysis of incomplete
block designs: I. The method of paired comparisons", Biometrika 39; Elo 1978, "The Rating of Chessplayers".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from kit.statistics import Interval, percentile_interval

ELO_PER_LOG_ODDS = 400 / math.log(10)
Shares = Mapping[tuple[str, str], float]  # (winner, loser): how often, a tie being half a win for each


class NotConnected(ValueError):
    """Some runs were never compared with the others, not even through a third: no rating relates them."""


class NotFinite(ValueError):
    """Some runs never lost to the others: their maximum-likelihood ratings are infinitely far above."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of one run against another on one prompt: 1 = the first won, 0 = the second, 0.5 = a tie."""

    prompt: str
    first: str
    second: str
    outcome: float


def elo_ratings(
    comparisons: Sequence[Comparison], *, anchor: str, anchor_rating: float = 1000.0, virtual_ties: float = 1.0
) -> dict[str, float]:
    """Maximum-likelihood ratings, after every two runs that were compared have also tied a little.

    A run that never loses has no finite maximum. One virtual tie, half a win for each side, keeps it finite: for two
    runs that is Firth's penalty, which takes the first-order bias off the log-odds. Where both have won it hardly moves
    a rating: by 0.8 points at 225 wins to 75.

    Args:
        comparisons: in any order; each is one observation, and a tie half a win for each side.
        anchor: the run whose rating is given.
        anchor_rating: in Elo points.
        virtual_ties: for each pair that was compared, >= 0; 0 = the plain maximum of the likelihood.

    Returns:
        Run -> rating in Elo points, best first.

    Raises:
        NotConnected: if a run cannot be related to the anchor.
        NotFinite: if virtual_ties is 0 and no finite ratings maximise the likelihood.
        ValueError: if there is no comparison, an outcome is outside [0, 1], a run is compared with itself, the anchor
            is in none, or virtual_ties < 0.

    Source: Bradley & Terry 1952; existence, Ford 1957, "Solution of a ranking problem from binary comparisons";
        virtual tie, Firth 1993, "Bias reduction of maximum likelihood estimates".

    >>> games = [Comparison(str(i), "online", "offline", float(i < 9)) for i in range(9)]  # 9.5 wins to 0.5
    >>> {run: round(rating) for run, rating in elo_ratings(games, anchor="offline").items()}
    {'online': 1512, 'offline': 1000}
    """
    if not virtual_ties >= 0:
        raise ValueError(f"expected virtual_ties >= 0, came {virtual_ties}")
    _check(comparisons, anchor)
    wins = {pair: share + virtual_ties / 2 for pair, share in _wins(comparisons).items()}
    _check_finite(wins, anchor)
    ratings = _fit(wins, anchor, anchor_rating)
    return dict(sorted(ratings.items(), key=lambda item: -item[1]))


def elo_intervals(
    comparisons: Sequence[Comparison],
    *,
    anchor: str,
    seed: int,
    anchor_rating: float = 1000.0,
    virtual_ties: float = 1.0,
    resamples: int = 200,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """`elo_ratings` with percentile-bootstrap intervals: whole prompts are drawn, all of their comparisons together.

    The intervals are those of differences to the anchor, whose own has no width. They hold for these trained runs;
    other training seeds are other runs.

    Args:
        comparisons: as for `elo_ratings`.
        anchor: the run whose rating is given.
        seed: of the resampling.
        anchor_rating: in Elo points.
        virtual_ties: > 0, because a resample may lack the one game that a run lost.
        resamples: >= 1.
        confidence: in (0, 1).

    Returns:
        Run -> interval, best first; n = number of prompts.

    Raises:
        ValueError: as `elo_ratings` does, or for a constant out of range.
    """
    if not virtual_ties > 0 or resamples < 1:
        raise ValueError(f"expected virtual_ties > 0 and resamples >= 1, came {virtual_ties} and {resamples}")
    whole = elo_ratings(comparisons, anchor=anchor, anchor_rating=anchor_rating, virtual_ties=virtual_ties)
    by_prompt: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_prompt.setdefault(comparison.prompt, []).append(comparison)
    pairs, shares = list(_wins(comparisons)), [_wins(games) for games in by_prompt.values()]
    fit = cache(lambda counts: _fit(dict(zip(pairs, counts, strict=True)), anchor, anchor_rating))  # few prompts repeat
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(resamples):
        wins = dict.fromkeys(pairs, virtual_ties / 2)  # of every pair, drawn or not: all stay connected
        for place in torch.randint(len(shares), (len(shares),), generator=generator).tolist():
            for pair, share in shares[place].items():
                wins[pair] += share
        draws.append(fit(tuple(wins.values())))
    return {
        run: percentile_interval(rating, [draw[run] for draw in draws], len(shares), confidence=confidence)
        for run, rating in whole.items()
    }


def _check(comparisons: Sequence[Comparison], anchor: str) -> None:
    runs = {run for c in comparisons for run in (c.first, c.second)}
    if anchor not in runs:
        raise ValueError(f"expected comparisons with the anchor {anchor!r}, came those of {sorted(runs)}")
    for c in comparisons:
        if c.first == c.second or not 0 <= c.outcome <= 1:
            raise ValueError(f"expected two different runs and an outcome in [0, 1], came {c}")
    reached = _reached(anchor, set(_wins(comparisons)))
    if reached != runs:
        raise NotConnected(
            f"expected comparisons that relate all runs to {anchor!r}, came none for {sorted(runs - reached)}: compare "
            f"one of these with one of {sorted(reached)}, or rate them apart"
        )


def _check_finite(wins: Shares, anchor: str) -> None:
    """A finite maximum exists if everybody has beaten everybody, at least through others (Ford 1957)."""
    beats = {pair for pair, share in wins.items() if share > 0}
    runs = {run for pair in wins for run in pair}
    stuck = runs - _reached(anchor, beats) or runs - _reached(anchor, {(loser, winner) for winner, loser in beats})
    if stuck:
        raise NotFinite(
            f"expected wins in both directions, came none between {sorted(stuck)} and the others in one of them: use "
            "virtual_ties > 0"
        )


def _reached(start: str, edges: set[tuple[str, str]]) -> set[str]:
    """All that can be walked to along the edges, the start included."""
    reached, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        found = {there for origin, there in edges if origin == here} - reached
        reached |= found
        waiting += found
    return reached


def _wins(comparisons: Sequence[Comparison]) -> dict[tuple[str, str], float]:
    """Both directions of every pair that was compared."""
    wins: dict[tuple[str, str], float] = {}
    for c in comparisons:
        for pair, share in (((c.first, c.second), c.outcome), ((c.second, c.first), 1 - c.outcome)):
            wins[pair] = wins.get(pair, 0.0) + share
    return wins


def _fit(wins: Shares, anchor: str, anchor_rating: float) -> dict[str, float]:
    """A logistic regression without penalty: +1 for the first run of a pair, -1 for the second, none for the anchor."""
    from sklearn.linear_model import LogisticRegression

    runs = sorted({run for pair in wins for run in pair} - {anchor})
    pairs = sorted({(min(pair), max(pair)) for pair in wins})
    rows = [[float((run == first) - (run == second)) for run in runs] for first, second in pairs]
    shares = [wins[pair] for pair in pairs] + [wins[second, first] for first, second in pairs]
    model = LogisticRegression(C=math.inf, solver="newton-cholesky", fit_intercept=False, tol=1e-10)
    labels = [1] * len(pairs) + [0] * len(pairs)
    log_odds = model.fit(rows + rows, labels, sample_weight=shares).coef_[0].tolist()
    return {anchor: anchor_rating} | {
        run: anchor_rating + ELO_PER_LOG_ODDS * above for run, above in zip(runs, log_odds, strict=True)
    }
