"""The difference of two arms over training seeds: how large it is, how sure, and whether it is as good as none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

from kit.statistics import Interval, t_probability, t_quantile


@dataclass(frozen=True, slots=True)
class Difference:
    r"""Mean of one arm minus that of another, in the unit of the values.

    Attributes:
        mean: :math:`\bar d`.
        standard_error: se; 0 where every seed says the same.
        df: degrees of freedom of Student's distribution, that of :math:`(\bar d - d) / se` for d the true one.
        n: training seeds, in each arm at least.
        is_paired: whether it is the mean of differences within a seed.
    """

    mean: float
    standard_error: float
    df: float
    n: int
    is_paired: bool

    def interval(self, *, confidence: float = 0.95) -> Interval:
        r"""Student's interval, :math:`\bar d \pm t_{(1+c)/2,\,df} \; se`."""
        reach = t_quantile((1 + confidence) / 2, self.df) * self.standard_error
        return Interval(self.mean, self.mean - reach, self.mean + reach, self.n)

    def p_value(self) -> float:
        """Of the two-sided test of "there is no difference"."""
        return 2 * min(self._at_most(0.0), self._at_least(0.0), 0.5)

    def p_equivalent(self, margin: float) -> float:
        r"""Of two one-sided tests: the larger p-value of "the difference is m or more" and "it is -m or less".

        At most .05 says that the arms are equivalent within the margin, as does a 90 % interval inside of (-m, m). A
        large one says that this is not shown, and not that the arms differ.

        Args:
            margin: m > 0, in the unit of the values, chosen before they were looked at.

        Source: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15, p. 657.
        """
        if not margin > 0:
            raise ValueError(f"expected a margin above 0, came {margin}")
        return max(self._at_most(margin), self._at_least(-margin))

    def _at_most(self, true: float) -> float:
        """Chance of a mean at most this large if `true` is the difference."""
        if not self.standard_error:
            return float(self.mean >= true)
        return t_probability((self.mean - true) / self.standard_error, self.df)

    def _at_least(self, true: float) -> float:
        """Chance of a mean at least this large."""
        if not self.standard_error:
            return float(self.mean <= true)
        return t_probability((true - self.mean) / self.standard_error, self.df)


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    r"""The mean of `one` minus that of `other`, each training seed -> value.

    Where two seeds or more are in both, it is paired, which takes out what a seed does to all arms (the same problems
    in the same order), and seeds that only one arm has are left out:

    .. math:: se = s_d / \sqrt n, \qquad df = n - 1

    Else it is Welch's, of arms that vary differently:

    .. math:: se^2 = \frac{s_1^2}{n_1} + \frac{s_2^2}{n_2}, \qquad
              df = \frac{se^4}{(s_1^2/n_1)^2/(n_1-1) + (s_2^2/n_2)^2/(n_2-1)}

    Raises:
        ValueError: if an arm has fewer than two seeds and they do not share two, or a value is not finite.

    Source: Student 1908; Welch 1947, Biometrika 34, p. 28.

    >>> found = difference({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.25})  # differences .25 and .5, se = .125
    >>> found.mean, found.standard_error, found.is_paired
    (0.375, 0.125, True)
    """
    for value in (*one.values(), *other.values()):
        if not math.isfinite(value):
            raise ValueError(f"expected finite numbers, came {value}")
    shared = [seed for seed in one if seed in other]
    if len(shared) > 1:
        differences = [one[seed] - other[seed] for seed in shared]
        n = len(differences)
        return Difference(fmean(differences), stdev(differences) / math.sqrt(n), n - 1, n, is_paired=True)
    if min(len(one), len(other)) < 2:
        raise ValueError(f"expected two training seeds or more of each arm, came {sorted(one)} and {sorted(other)}")
    parts = [variance(arm.values()) / len(arm) for arm in (one, other)]
    total = sum(parts)
    sizes = [len(one), len(other)]
    df = (
        total**2 / sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
        if total
        else min(sizes) - 1
    )
    return Difference(fmean(one.values()) - fmean(other.values()), math.sqrt(total), df, min(sizes), is_paired=False)


def holm(p_values: Sequence[float]) -> list[float]:
    r"""p-values as they are to be read when so many were looked at: the chance of any false alarm stays at the level.

    .. math:: \tilde p_{(i)} = \min\bigl(1, \max_{j \le i} (m - j + 1) \, p_{(j)}\bigr)

    Args:
        p_values: m of them, in any order.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, p. 65.

    >>> holm([0.25, 0.0625, 0.5])  # smallest first: 3 x .0625, 2 x .25, 1 x .5
    [0.5, 0.1875, 0.5]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
