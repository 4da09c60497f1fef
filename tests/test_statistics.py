"""Intervals against published tables, closed forms and their own promise of coverage."""

import math
from itertools import combinations, product
from typing import Any

import pytest
import torch

from kit.statistics import (
    Interval,
    cluster_bootstrap,
    mean_interval,
    pass_at_k,
    t_quantile,
    two_level_bootstrap,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("probability", "df", "expected"),
    [
        # Table of Student's t, e.g. NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2
        (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 4, 2.776), (0.975, 5, 2.571),
        (0.975, 10, 2.228), (0.975, 29, 2.045), (0.975, 30, 2.042), (0.975, 100, 1.984),
        (0.95, 4, 2.132), (0.995, 9, 3.250), (0.999, 2, 22.327), (0.9, 7, 1.415),
    ],
)  # fmt: skip
def test_t_quantiles_are_those_of_the_tables(probability: float, df: int, expected: float) -> None:
    assert t_quantile(probability, df) == pytest.approx(expected, abs=5.01e-4)


def test_t_quantiles_are_exact_where_a_closed_form_exists() -> None:
    for probability in (0.6, 0.9, 0.975, 0.9995):
        tangent = math.tan(math.pi * (probability - 0.5))  # one degree of freedom: Cauchy
        assert t_quantile(probability, 1) == pytest.approx(tangent, rel=1e-9)
        root = (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))  # two
        assert t_quantile(probability, 2) == pytest.approx(root, rel=1e-9)
    assert t_quantile(0.975, 4) == pytest.approx(2.7764451052, abs=1e-9)
    assert t_quantile(0.975, 100_000) == pytest.approx(1.959987708, abs=1e-8)  # z + (z^3 + z) / 4 df, z = 1.959963985


def test_t_quantiles_are_odd_around_the_median() -> None:
    assert t_quantile(0.5, 3) == pytest.approx(0.0, abs=1e-12)
    assert t_quantile(0.025, 3) == pytest.approx(-t_quantile(0.975, 3), rel=1e-12)


def test_a_mean_of_five_seeds_has_the_interval_of_the_textbook() -> None:
    interval = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half_width = 2.7764451052 * math.sqrt(2.5) / math.sqrt(5)  # s^2 = 10 / 4
    assert (interval.mean, interval.n) == (3.0, 5)
    assert (interval.low, interval.high) == pytest.approx((3 - half_width, 3 + half_width), abs=1e-9)
    narrower = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0], confidence=0.9)
    assert narrower.high - 3 == pytest.approx(2.1318467863 * math.sqrt(0.5), abs=1e-9)


def test_the_interval_of_three_seeds_covers_the_truth_as_often_as_it_says() -> None:
    draws = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    covered = sum(interval.low <= 0 <= interval.high for interval in map(mean_interval, draws)) / 1000
    assert abs(covered - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 1000)  # 5 standard errors, 0.034; with z for t it is 0.80


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, Table I, method 3 (score, without continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),  # mirror image of 0 of 20
    ],
)
def test_wilson_intervals_are_the_published_ones(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    assert (interval.mean, interval.n) == (successes / trials, trials)


@pytest.mark.parametrize("trials", [1, 7, 13, 20])  # without care, rounding passes 0 or 1 at three of these
def test_a_proportion_at_the_end_has_a_bound_exactly_there(trials: int) -> None:
    assert wilson_interval(0, trials).low == 0.0
    assert wilson_interval(trials, trials).high == 1.0


def test_a_bootstrap_over_two_problems_has_the_quantiles_of_its_four_resamples() -> None:
    # Problem means 0 and 1: the resampled mean is 0, 1/2, 1/2 or 1, each a quarter of the time.
    scores = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    interval = cluster_bootstrap(scores, seed=0, resamples=400, confidence=0.4)  # quantiles .3 and .7
    assert interval == Interval(0.5, 0.5, 0.5, 2)
    assert cluster_bootstrap(scores, seed=0, resamples=400, confidence=0.6) == Interval(0.5, 0.0, 1.0, 2)  # .2 and .8


def test_more_samples_of_the_same_problems_do_not_narrow_the_interval() -> None:
    problems = torch.rand(50, 1, generator=torch.Generator().manual_seed(1))
    once = cluster_bootstrap(problems, seed=0)
    often = cluster_bootstrap(problems.expand(50, 100), seed=0)
    assert (often.low, often.high) == pytest.approx((once.low, once.high), abs=1e-9)
    standard_error = problems.double().std().item() / math.sqrt(50)
    assert once.high - once.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_a_bootstrap_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    scores = torch.rand(20, 4, generator=torch.Generator().manual_seed(2))
    state = torch.get_rng_state()
    assert cluster_bootstrap(scores, seed=3, resamples=50) == cluster_bootstrap(scores, seed=3, resamples=50)
    assert cluster_bootstrap(scores, seed=3, resamples=50) != cluster_bootstrap(scores, seed=4, resamples=50)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_level_bootstrap_draws_runs_and_the_same_prompts_for_all_of_them() -> None:
    # One cell of two runs by two prompts is 1. A resample's mean is (share of that run) (share of that prompt), each
    # Binomial(2, .5) / 2: 0, .25, .5, 1 with chances 7/16, 4/16, 4/16, 1/16, cumulated .4375, .6875, .9375, 1.
    # Were prompts drawn anew for each run, P(mean > .75) would be 1/64, and the .95 quantile .75.
    scores = torch.tensor([[[0.0], [0.0]], [[0.0], [1.0]]])
    for confidence, low, high in ((0.1, 0.25, 0.25), (0.7, 0.0, 0.5), (0.9, 0.0, 1.0)):
        found = two_level_bootstrap(scores, seed=0, resamples=4000, confidence=confidence)
        assert found == Interval(0.25, low, high, 2)


def test_one_run_leaves_the_prompts_and_runs_alike_change_nothing() -> None:
    prompts = torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(1))
    alone = two_level_bootstrap(prompts, seed=0)
    assert alone.n == 50
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * prompts.mean(2).std().item() / math.sqrt(50), rel=0.1)
    alike = two_level_bootstrap(prompts.expand(4, 50, 3), seed=0)
    assert alike.n == 4
    assert alike.high - alike.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_runs_that_differ_on_equal_prompts_give_the_spread_of_runs() -> None:
    runs = torch.rand(40, generator=torch.Generator().manual_seed(3))
    found = two_level_bootstrap(runs[:, None, None].expand(40, 10, 2), seed=0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * runs.std().item() / math.sqrt(40), rel=0.1)


@pytest.mark.parametrize(("correct", "samples", "k"), [(c, 5, k) for c, k in product(range(6), range(1, 6))])
def test_pass_at_k_is_the_fraction_of_all_subsets_with_a_correct_sample(correct: int, samples: int, k: int) -> None:
    subsets = list(combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(correct, samples, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    # Four samples, each correct with probability 0.3: E pass@2 = 1 - 0.7^2.
    expectation = sum(math.comb(4, c) * 0.3**c * 0.7 ** (4 - c) * pass_at_k(c, 4, 2) for c in range(5))
    assert expectation == pytest.approx(1 - 0.7**2, abs=1e-12)


def test_an_interval_prints_its_bounds_and_its_n() -> None:
    interval = Interval(0.51234, 0.4, 0.625, 12)
    assert str(interval) == f"{interval}" == "0.512 [0.400, 0.625] (n=12)"
    assert f"{interval:.1%}" == "51.2% [40.0%, 62.5%] (n=12)"


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (mean_interval, {"values": [1.0]}, "at least 2 independent values, came 1"),
        (mean_interval, {"values": [1.0, math.nan]}, "finite"),
        (mean_interval, {"values": [1.0, 2.0], "confidence": 95.0}, r"\(0, 1\), came 95.0"),
        (wilson_interval, {"successes": 3, "trials": 2}, "3 of 2"),
        (wilson_interval, {"successes": 0, "trials": 0}, "0 of 0"),
        (wilson_interval, {"successes": -1, "trials": 2}, "-1 of 2"),
        (wilson_interval, {"successes": 1, "trials": 2, "confidence": 1.0}, r"\(0, 1\), came 1"),
        (cluster_bootstrap, {"scores_by_problem": torch.zeros(0, 2), "seed": 0}, r"\(0, 2\)"),
        (cluster_bootstrap, {"scores_by_problem": torch.tensor([[math.nan]]), "seed": 0}, "finite scores"),
        (cluster_bootstrap, {"scores_by_problem": torch.ones(2, 2), "seed": 0, "resamples": 0}, "resamples >= 1"),
        (two_level_bootstrap, {"scores": torch.zeros(2, 0, 2), "seed": 0}, r"\(2, 0, 2\)"),
        (two_level_bootstrap, {"scores": torch.tensor([[[math.nan]]]), "seed": 0}, "finite scores"),
        (two_level_bootstrap, {"scores": torch.ones(2, 2, 2), "seed": 0, "resamples": 0}, "resamples >= 1"),
        (two_level_bootstrap, {"scores": torch.ones(2, 2, 2), "seed": 0, "confidence": 1.0}, "in \\(0, 1\\), came 1.0"),
        (pass_at_k, {"num_correct": 3, "num_samples": 2, "k": 1}, "came 3, 2, 1"),
        (pass_at_k, {"num_correct": 1, "num_samples": 2, "k": 3}, "came 1, 2, 3"),
        (pass_at_k, {"num_correct": 1, "num_samples": 2, "k": 0}, "came 1, 2, 0"),
        (t_quantile, {"probability": 0.975, "df": 0}, "degrees of freedom above 0, came 0"),
    ],
)
def test_refusals(function: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        function(**arguments)
