"""What tokens are coloured by, and how: a value a token, a colour that says how large it is, and a legend.

A colour is one hue over the page's own background, the stronger the larger the value, so that it reads on a light page
and on a dark one. Blue and orange stay apart for readers who cannot tell red from green; a legend gives the numbers.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kit.microscope.group import Completion

ORANGE, BLUE = "213, 94, 0", "0, 114, 178"  # Okabe and Ito 2008, safe for colour-blind readers
STRONGEST = 0.6  # opacity; text stays legible on it
STEPS = (1.0, 2.0, 5.0)  # a scale ends at one of these times a power of ten
RATIOS = (1.001, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 5.0, 10.0, 100.0)  # or, of ratios, at one of these
MAX_LOG_RATIO = 20.0  # as in kit.importance

Values = Sequence[float] | None


@dataclass(frozen=True)
class Measure:
    """One thing that is known of a token.

    Attributes:
        title: as a person reads it.
        unit: of its numbers.
        formula: how it is computed, from log-probs of the token under sampler, policy and reference.
        values: of a completion's tokens; None where the completion was not asked for it.
        size: how far a value is from the ordinary one, signed; a token's colour is the sign's, as strong as the size.
        ends: where a scale may end, in units of `size`, ascending.
        ticks: (size as a share of the scale, number) of a legend, for a scale that ends at the given size.
        hues: of negative and of positive sizes.
    """

    title: str
    unit: str
    formula: str
    values: Callable[[Completion], Values]
    size: Callable[[float], float]
    ends: Sequence[float]
    ticks: Callable[[float], list[tuple[float, float]]]
    hues: tuple[str, str] = (BLUE, ORANGE)

    def end(self, completions: Iterable[Completion]) -> float:
        """Where the scale ends that shows all these values: the first of `ends` that only 1 in 100 goes beyond."""
        values = (value for completion in completions for value in self.values(completion) or ())
        sizes = sorted(abs(self.size(value)) for value in values if math.isfinite(value))
        largest = sizes[math.ceil(0.99 * len(sizes)) - 1] if sizes else 0.0
        return next((end for end in self.ends if end >= largest), self.ends[-1])

    def share(self, value: float, end: float) -> float:
        """How far along the scale a value is, in [-1, 1]; 0 for what is no number."""
        return 0.0 if math.isnan(value) else max(-1.0, min(1.0, self.size(value) / end))

    def colour(self, share: float) -> str:
        """CSS for a share of the scale."""
        return f"rgba({self.hues[share > 0]}, {abs(share) * STRONGEST:.3f})"


def _k3(completion: Completion) -> Values:
    """As `kit.kl.k3`, of one token after the other."""
    if completion.logprobs is None or completion.ref_logprobs is None:
        return None
    differences = (ref - own for own, ref in zip(completion.logprobs, completion.ref_logprobs, strict=True))
    return [math.expm1(_bounded(d)) - d for d in differences]


def _ratios(completion: Completion) -> Values:
    if completion.logprobs is None or completion.old_logprobs is None:
        return None
    pairs = zip(completion.logprobs, completion.old_logprobs, strict=True)
    return [math.exp(_bounded(own - old)) for own, old in pairs]


def _bounded(difference: float) -> float:
    """Within what an exponential can take; NaN stays NaN."""
    return difference if math.isnan(difference) else max(-MAX_LOG_RATIO, min(MAX_LOG_RATIO, difference))


def _from_zero(end: float) -> list[tuple[float, float]]:
    return [(share, share * end) for share in (0.0, 0.5, 1.0)]


def _decades(lowest: int, highest: int) -> list[float]:
    return [step * 10.0**power for power in range(lowest, highest + 1) for step in STEPS]


MEASURES = {
    "logprob": Measure(
        "log-prob", "nats", "log π_old(token): under the sampler, when it was drawn; 0 = certain",
        lambda completion: completion.old_logprobs, lambda value: -value, _decades(0, 1),
        lambda end: [(share, -number) for share, number in _from_zero(end)],
    ),
    "entropy": Measure(
        "entropy", "nats", "H(π_old): of the distribution that the token was drawn from; 0 = no choice",
        lambda completion: completion.entropies, lambda value: value, _decades(-1, 1), _from_zero,
    ),
    "ratio": Measure(
        "ratio", "×", "π(token) / π_old(token): policy before the update over sampler; 1 = the same model",
        _ratios, math.log, [math.log(ratio) for ratio in RATIOS],
        lambda end: [(share, math.exp(share * end)) for share in (-1.0, 0.0, 1.0)],
    ),
    "kl": Measure(
        "KL to the reference", "nats", "k3 = r − 1 − log r with r = π_ref(token) / π(token), before the update",
        _k3, lambda value: value, _decades(-4, 1), _from_zero,
    ),
}  # fmt: skip


def number(value: float, unit: str = "") -> str:
    """As it is shown: four digits, and a true minus.

    >>> number(-0.00012345, "nats"), number(1.0, "×")
    ('−0.0001234 nats', '1 ×')
    """
    text = f"{value or 0.0:.4g}".replace("-", "−")  # `or`: there is no -0
    return f"{text} {unit}".rstrip()
