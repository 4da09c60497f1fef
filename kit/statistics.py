"""Intervals, so that no number stands alone.

Sources of chance, each with an interval of its own: training seeds (`mean_interval`), one answer a problem
(`wilson_interval`), problems that are answered several times (`cluster_bootstrap`), training seeds and problems
(`two_level_bootstrap`). The standard deviation over sampling seeds is none of them: it describes a single evaluation,
not the uncertainty of a mean.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, the bounds of its interval, and the number of independent units behind it.

    >>> print(Interval(0.5, 0.25, 0.75, 8))
    0.500 [0.250, 0.750] (n=8)
    >>> f"{Interval(0.5, 0.25, 0.75, 8):.0%}"
    '50% [25%, 75%] (n=8)'
    """

    mean: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        """The three numbers in the given format, three decimals by default."""
        mean, low, high = (format(number, spec or ".3f") for number in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}] (n={self.n})"

    def __str__(self) -> str:
        return format(self)


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    r"""Student-t interval for the mean of independent runs, such as one number a training seed.

    .. math:: \bar x \pm t_{(1+c)/2,\,n-1} \; s / \sqrt n

    Args:
        values: one number a run, any unit, at least two.
        confidence: c in (0, 1).

    Returns:
        The interval, in the unit of the values; n = number of runs.

    Raises:
        ValueError: fewer than two values, one that is not finite, or confidence outside (0, 1).

    Source: Student 1908; exact if the runs are normally distributed.

    >>> print(mean_interval([1.0, 3.0]))  # 2 +- 12.706 * sqrt(2) / sqrt(2)
    2.000 [-10.706, 14.706] (n=2)
    """
    if len(values) < 2:
        raise ValueError(f"expected at least 2 independent values, came {len(values)}: one run has no interval")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"expected finite values, came {list(values)}: report failed runs apart")
    mean = fmean(values)
    half_width = t_quantile((1 + _proper(confidence)) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half_width, mean + half_width, len(values))


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    r"""Wilson score interval for a proportion of independent trials; never leaves [0, 1], valid for small counts.

    .. math:: \frac{\hat p + z^2/2n \pm z\sqrt{\hat p(1-\hat p)/n + z^2/4n^2}}{1 + z^2/n}

    Args:
        successes: between 0 and `trials`.
        trials: at least 1; independent, so one answer a problem.
        confidence: in (0, 1).

    Returns:
        The interval; its `mean` is the observed proportion, not the interval's centre; n = trials.

    Raises:
        ValueError: counts or confidence out of range.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    >>> print(wilson_interval(0, 10))  # z^2 / (n + z^2) = 3.8415 / 13.8415
    0.000 [0.000, 0.278] (n=10)
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"expected 0 <= successes <= trials and trials >= 1, came {successes} of {trials}")
    z = NormalDist().inv_cdf((1 + _proper(confidence)) / 2)
    proportion, shrink = successes / trials, 1 / (1 + z**2 / trials)
    centre = shrink * (proportion + z**2 / (2 * trials))
    half_width = shrink * z * math.sqrt(proportion * (1 - proportion) / trials + z**2 / (4 * trials**2))
    low = 0.0 if successes == 0 else centre - half_width  # exactly 0 and 1 at the ends, not a rounding error beyond
    high = 1.0 if successes == trials else centre + half_width
    return Interval(proportion, low, high, trials)


def cluster_bootstrap(
    scores_by_problem: Float[Tensor, "problem sample"],
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap for a mean score, resampling whole *problems*: samples of one problem are not independent.

    Args:
        scores_by_problem: the score of each sample, any unit.
        seed: of the resampling; the same seed gives the same interval.
        resamples: bootstrap means to draw, >= 1.
        confidence: in (0, 1).

    Returns:
        The interval, in the unit of the scores; n = number of problems.

    Raises:
        ValueError: no scores, one that is not finite, or a constant out of range.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.

    >>> print(cluster_bootstrap(torch.ones(4, 2), seed=0))
    1.000 [1.000, 1.000] (n=4)
    """
    if not scores_by_problem.numel() or not bool(scores_by_problem.isfinite().all()):
        raise ValueError(f"expected finite scores (problem, sample), came {tuple(scores_by_problem.shape)} with gaps")
    if resamples < 1:
        raise ValueError(f"expected resamples >= 1, came {resamples}")
    problem_means = scores_by_problem.detach().double().cpu().mean(dim=1)
    problems = len(problem_means)
    generator = torch.Generator().manual_seed(seed)
    draws = [
        problem_means[torch.randint(problems, (problems,), generator=generator)].mean().item() for _ in range(resamples)
    ]
    return percentile_interval(problem_means.mean().item(), draws, problems, confidence=confidence)


def two_level_bootstrap(
    scores: Float[Tensor, "run prompt sample"],
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap for the mean score of training runs on the same prompts, over both runs and prompts.

    Each resample draws runs, and independently prompts, with replacement; a drawn prompt is the same one for all runs.
    Drawing prompts within each run anew would treat a prompt that all runs find hard as several, and be too narrow.

    In 300 simulations (128 prompts, 4 samples, 95 %) it covered the truth in 93 to 95 % where prompts differed more
    than the 3 to 10 runs did; `mean_interval` over the runs, which takes the shared prompts as given, in 84 to 50 %.
    Where runs differed more it covered 80 % with 3 runs and 84 % with 5, and `mean_interval` 97 and 94 %. So with few
    runs look at both, and believe the wider.

    Args:
        scores: by training seed, prompt and completion, any unit; of one run, the interval is over prompts alone.
        seed: of the resampling.
        resamples: >= 1.
        confidence: in (0, 1).

    Returns:
        The interval; n = number of runs, or of prompts if there is one run.

    Raises:
        ValueError: no scores, one that is not finite, or a constant out of range.

    Source: Owen 2007, "The pigeonhole bootstrap", https://arxiv.org/abs/0712.1111.

    >>> print(two_level_bootstrap(torch.ones(3, 4, 2), seed=0))
    1.000 [1.000, 1.000] (n=3)
    """
    if not scores.numel() or not bool(scores.isfinite().all()):
        raise ValueError(f"expected finite scores (run, prompt, sample), came {tuple(scores.shape)} with gaps")
    means = scores.detach().double().cpu().mean(dim=2)

    def mean_score(runs: Tensor, prompts: Tensor) -> float:
        return means[runs][:, prompts].mean().item()

    return resample_two_levels(mean_score, *means.shape, seed=seed, resamples=resamples, confidence=confidence)


def resample_two_levels(
    statistic: Callable[[Tensor, Tensor], float],
    runs: int,
    prompts: int,
    *,
    seed: int,
    resamples: int,
    confidence: float,
) -> Interval:
    """`two_level_bootstrap` for any statistic of the indices of runs and of prompts, which may repeat."""
    if resamples < 1:
        raise ValueError(f"expected resamples >= 1, came {resamples}")
    generator = torch.Generator().manual_seed(seed)
    draws = [
        statistic(*(torch.randint(size, (size,), generator=generator) for size in (runs, prompts)))
        for _ in range(resamples)
    ]
    whole = statistic(torch.arange(runs), torch.arange(prompts))
    return percentile_interval(whole, draws, runs if runs > 1 else prompts, confidence=confidence)


def percentile_interval(mean: float, draws: Sequence[float], n: int, *, confidence: float) -> Interval:
    """The interval between the quantiles of bootstrap draws that leave out equal tails."""
    tail = (1 - _proper(confidence)) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = torch.tensor(draws, dtype=torch.float64).quantile(ends).tolist()
    return Interval(mean, low, high, n)


def pass_at_k(num_correct: int, num_samples: int, k: int) -> float:
    r"""Unbiased estimate of the probability that at least one of k samples is correct, for one problem.

    .. math:: 1 - \binom{n-c}{k} \Big/ \binom{n}{k}

    Args:
        num_correct: c, correct samples.
        num_samples: n, samples drawn.
        k: at most n.

    Returns:
        A probability. Average it over problems.

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", https://arxiv.org/abs/2107.03374.

    >>> pass_at_k(1, 4, 2)  # 2 of the 4 samples hold the correct one half of the time
    0.5
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(
            f"expected 0 <= correct <= samples and 1 <= k <= samples, came {num_correct}, {num_samples}, {k}"
        )
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def t_quantile(probability: float, df: float) -> float:
    """The t with P(T <= t) = `probability` in (0, 1), of Student's distribution with `df` > 0 degrees of freedom.

    >>> round(t_quantile(0.975, 4), 6)
    2.776445
    """
    from scipy.special import stdtrit  # a tenth of a second to import

    return float(stdtrit(_degrees(df), _proper(probability)))


def t_probability(t: float, df: float) -> float:
    """P(T <= t) of Student's distribution with `df` > 0 degrees of freedom.

    >>> t_probability(1.0, 1)  # Cauchy's: 1/2 + atan(1) / pi
    0.75
    """
    from scipy.special import stdtr  # as above

    return float(stdtr(_degrees(df), t))


def _degrees(df: float) -> float:
    if not df > 0:
        raise ValueError(f"expected degrees of freedom above 0, came {df}")
    return df


def _proper(probability: float) -> float:
    """The probability itself, if it lies strictly between 0 and 1."""
    if not 0 < probability < 1:
        raise ValueError(f"expected a probability or confidence in (0, 1), came {probability}")
    return probability
