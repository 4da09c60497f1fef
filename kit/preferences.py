"""Noisy preferences between two completions, drawn from known utilities; and how well they can be predicted at best."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BradleyTerry:
    r"""An annotator who prefers the better completion more often, the larger the difference.

    .. math:: P(a \succ b) = \sigma\big((u_a - u_b + \lambda (|a| - |b|)) / \tau\big)

    With length bonus λ > 0 the annotator has the bias of real ones: a longer completion looks better than it is.

    Source: Bradley and Terry 1952, "Rank Analysis of Incomplete Block Designs", Biometrika 39.

    >>> round(BradleyTerry().probability(1.0), 4), BradleyTerry().probability(0.0)
    (0.7311, 0.5)
    """

    temperature: float = 1.0  # utility units for a log-odds of 1; more = noisier
    length_bonus: float = 0.0  # utility units a word; 0 = unbiased

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf or not math.isfinite(self.length_bonus):
            raise ValueError(f"expected a finite temperature > 0 and a finite length_bonus, came {self}")

    def probability(self, gap: float, length_gap: float = 0.0) -> float:
        """That the first completion is preferred.

        Args:
            gap: utility of the first minus that of the second.
            length_gap: words of the first minus those of the second.
        """
        log_odds = (gap + self.length_bonus * length_gap) / self.temperature
        tail = math.exp(-abs(log_odds))  # at most 1: cannot overflow
        return 1 / (1 + tail) if log_odds >= 0 else tail / (1 + tail)

    def draw(self, gaps: Sequence[float], length_gaps: Sequence[float], rng: random.Random) -> list[bool]:
        """For each pair whether the first completion was preferred; one number is drawn from `rng` a pair."""
        return [rng.random() < probability for probability in self.probabilities(gaps, length_gaps)]

    def probabilities(self, gaps: Sequence[float], length_gaps: Sequence[float]) -> list[float]:
        """`probability` of each pair."""
        return [self.probability(gap, length_gap) for gap, length_gap in zip(gaps, length_gaps, strict=True)]

    def noise_ceiling(self, gaps: Sequence[float], length_gaps: Sequence[float]) -> float:
        """Expected accuracy, on preferences of these pairs, of one who knows the utilities and always goes by them.

        Without a length bonus nobody can do better. With one, whoever shares the bias can.
        """
        return expected_accuracy(gaps, self.probabilities(gaps, length_gaps))


def expected_accuracy(gaps: Sequence[float], probabilities: Sequence[float]) -> float:
    r"""How often an ordering agrees with preferences drawn with these probabilities; exact, nothing is drawn.

    .. math:: \frac1n \sum_i \big[p_i\ (\text{gap}_i > 0),\ 1 - p_i\ (< 0),\ 1/2\ (= 0)\big]

    Args:
        gaps: score of the first completion minus that of the second under the ordering, such as a reward model's.
        probabilities: of each pair, that the first is preferred.

    Returns:
        A fraction of the pairs, in [0, 1]. A tie counts a half: it can only be guessed.

    Raises:
        ValueError: if there is no pair, the lengths differ, a gap is NaN, or a probability is outside [0, 1].

    >>> expected_accuracy([2.0, -1.0, 0.0], [0.75, 0.75, 0.75])
    0.5
    """
    if not gaps or len(gaps) != len(probabilities):
        raise ValueError(f"expected a probability for each gap, came {len(gaps)} and {len(probabilities)}")
    if any(map(math.isnan, gaps)) or not all(0 <= probability <= 1 for probability in probabilities):
        raise ValueError(f"expected gaps that are numbers, and probabilities, came {gaps} and {probabilities}")
    agreement = [0.5 if g == 0 else p if g > 0 else 1 - p for g, p in zip(gaps, probabilities, strict=True)]
    return math.fsum(agreement) / len(agreement)
