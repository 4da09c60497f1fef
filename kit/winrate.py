"""Win rates over a baseline on the same prompts: plain, and with the effect of length taken out as AlpacaEval 2.0 does.

The plain rate's interval is `kit.statistics.two_level_bootstrap` of the outcomes. Dubois et al. 2024,
"Length-Controlled AlpacaEval: A Simple Way to Debias Automatic Evaluators", arXiv 2404.04475; the model is that of
their package, alpaca-eval 0.6.6, whose numbers `tests/golden/alpaca_eval.json` holds.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

import torch
from jaxtyping import Float
from torch import Tensor

from kit.statistics import Interval, resample_two_levels

FOLDS = 5
INVERSE_STRENGTHS = tuple(10 ** (8 * i / 9 - 4) for i in range(10))  # 1e-4 to 1e4, scikit-learn's default
GAMED_WEIGHT = 0.1  # of one gamed annotation; the reference has 0.2, halved because there are two gamed baselines
TRACE = 1e-12  # a weight that leaves no mark
SOLVER_SEED = 123  # the reference's
MIN_CHANCE = 1e-15  # the reference's, inside the logarithm


@dataclass(frozen=True, slots=True)
class GamedBaselines:
    """Annotations of a verbose and a concise rewriting of the baseline, against it: they differ in length only.

    `differences` are lengths minus the baseline's, divided by their standard deviation. All three have one entry each.
    """

    outcomes: Sequence[float]
    differences: Sequence[float]
    instruction_difficulty: Sequence[float]


def outcome(utility: float, baseline_utility: float) -> float:
    """1 = a win, 0 = a loss, 0.5 = a tie."""
    if math.isnan(utility) or math.isnan(baseline_utility):
        raise ValueError(f"expected two utilities, came {utility} and {baseline_utility}")
    return 0.5 if utility == baseline_utility else float(utility > baseline_utility)


def win_rate(utilities: Sequence[float], baseline_utilities: Sequence[float]) -> float:
    """Mean outcome over prompts, in [0, 1].

    >>> win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 1.0])
    0.625
    """
    if not utilities:
        raise ValueError("expected at least one pair of utilities, came none")
    return math.fsum(outcome(u, base) for u, base in zip(utilities, baseline_utilities, strict=True)) / len(utilities)


def length_controlled_win_rate(
    outcomes: Sequence[float],
    length_differences: Sequence[float],
    *,
    instruction_difficulty: Sequence[float] | None = None,
    gamed: GamedBaselines | None = None,
) -> float:
    r"""The win rate to be expected if every completion were as long as the baseline's, by AlpacaEval 2.0's model.

    .. math:: P(\text{win}_i) = \sigma\big(a + b \tanh(d_i / s) + c\,\gamma_i\big), \qquad
              \text{result} = \tfrac1n \sum_i \sigma(a + c\,\gamma_i)

    with d the difference in length, s its standard deviation (n - 1) over the prompts and gamma the difficulty. The
    coefficients minimise the cross-entropy plus an L1 penalty on all of them, a included, whose strength of ten is the
    best in five-fold cross-validation: so with few prompts the result leans towards 1/2. Folds go by the order of the
    prompts, i mod 5, so an order that repeats itself makes them unlike. An outcome between 0 and 1 is a win of that
    weight and a loss of the rest. Where all completions are longer than the baseline's it extrapolates.

    It departs from the reference in one point: where all folds but one, or all, are lost without a single win, the
    reference's solver fails (it says 50 % of a model that always loses); here losses are the mirror image of wins.

    Args:
        outcomes: one a prompt, in [0, 1]; at least five.
        length_differences: length minus the baseline's, in characters or tokens; the unit cancels.
        instruction_difficulty: gamma, one a prompt, known from many other models; None leaves the term out (the
            reference's `length_controlled_minimal`; with it, `length_controlled_noreg`).
        gamed: further annotations that enter the fit with a weight of 0.1 each and without a, and so draw b and c
            towards what they say; with `instruction_difficulty` only (the reference's default, `length_controlled_v1`).

    Returns:
        A rate in [0, 1]. Where all differences are equal, which the reference leaves undefined, the plain win rate;
        so a baseline compared with itself gets 1/2.

    Raises:
        ValueError: fewer than five outcomes, one outside [0, 1], numbers of them that differ, a length or a difficulty
            that is not finite, or gamed baselines without difficulties.

    Source: arXiv 2404.04475; alpaca-eval 0.6.6, `metrics/glm_winrate.py`.

    >>> length_controlled_win_rate([1.0, 0.5, 0.0, 1.0, 1.0], [7, 7, 7, 7, 7])
    0.7
    """
    data = _Annotations.of(outcomes, length_differences, range(len(outcomes)), instruction_difficulty)
    if gamed is not None:
        data = data.beside(gamed)
    return data.rate(data.best_inverse_strength())


def length_controlled_interval(
    outcomes: Float[Tensor, "run prompt sample"],
    length_differences: Float[Tensor, "run prompt sample"],
    *,
    seed: int,
    instruction_difficulty: Float[Tensor, " prompt"] | None = None,
    resamples: int = 200,
    confidence: float = 0.95,
) -> Interval:
    """The mean length-controlled win rate of several training seeds; a two-level bootstrap that fits anew each time.

    A run's penalty is chosen once, on all of its prompts, and kept: choosing it anew in every resample would take fifty
    times as long. Folds and resamples are made of whole prompts: completions of one prompt stay together.

    Args:
        outcomes: in [0, 1], by training seed, prompt and completion; one run gives the interval over prompts alone.
        length_differences: of the same completions, to the baseline's on that prompt.
        seed: of the resampling.
        instruction_difficulty: as for `length_controlled_win_rate`.
        resamples: >= 1.
        confidence: in (0, 1).

    Returns:
        The interval, as `kit.statistics.two_level_bootstrap` gives it.

    Raises:
        ValueError: as `length_controlled_win_rate` does for a run, or a constant out of range.
    """
    runs, prompts, samples = outcomes.shape
    wins, differences = outcomes.detach().cpu().tolist(), length_differences.detach().cpu().tolist()
    difficulty = None if instruction_difficulty is None else instruction_difficulty.detach().cpu().tolist()

    def annotations(run: int, chosen: list[int]) -> _Annotations:
        return _Annotations.of(
            [y for prompt in chosen for y in wins[run][prompt]],
            [d for prompt in chosen for d in differences[run][prompt]],
            [place for place in range(len(chosen)) for _ in range(samples)],
            None if difficulty is None else [difficulty[prompt] for prompt in chosen for _ in range(samples)],
        )

    strengths = [annotations(run, list(range(prompts))).best_inverse_strength() for run in range(runs)]

    def mean_rate(drawn_runs: Tensor, drawn_prompts: Tensor) -> float:
        chosen = drawn_prompts.tolist()
        rate = cache(lambda run: annotations(run, chosen).rate(strengths[run]))
        return fmean(rate(run) for run in drawn_runs.tolist())

    return resample_two_levels(mean_rate, runs, prompts, seed=seed, resamples=resamples, confidence=confidence)


@dataclass(frozen=True)
class _Annotations:
    """What the logistic model is fitted to, in the reference's order of rows and columns: the solver depends on it."""

    inputs: Float[Tensor, "row column"]  # -tanh(d / s), difficulty if there is one, 1 (0 for a gamed baseline)
    outcomes: Float[Tensor, " row"]
    weights: Float[Tensor, " row"]
    prompts: Float[Tensor, " row"]  # rows of equal number stay together in cross-validation
    own: int  # the last rows are the model's

    @classmethod
    def of(
        cls,
        outcomes: Sequence[float],
        differences: Sequence[float],
        prompts: Sequence[int],
        difficulty: Sequence[float] | None,
    ) -> "_Annotations":
        n = len(outcomes)
        if len(set(prompts)) < FOLDS or len(differences) != n or not all(0 <= y <= 1 for y in outcomes):
            raise ValueError(
                f"expected an outcome in [0, 1] for each of {len(differences)} differences, on at least {FOLDS} "
                f"prompts, came {outcomes!r:.200}"
            )
        if not all(map(math.isfinite, differences)):
            raise ValueError(f"expected finite differences in length, came {differences!r:.200}")
        if difficulty is not None and (len(difficulty) != n or not all(map(math.isfinite, difficulty))):
            raise ValueError(f"expected a finite difficulty for each of {n} outcomes, came {difficulty!r:.200}")
        spread = stdev(differences)
        lengths = [-math.tanh(d / spread) if spread else 0.0 for d in differences]
        columns = [lengths, *([] if difficulty is None else [list(difficulty)]), [1.0] * n]
        inputs = torch.tensor(columns, dtype=torch.float64).T.contiguous()
        won, numbers = (torch.tensor(list(values), dtype=torch.float64) for values in (outcomes, prompts))
        return cls(inputs, won, torch.ones(n, dtype=torch.float64), numbers, n)

    def beside(self, gamed: GamedBaselines) -> "_Annotations":
        """Together with the annotations of the gamed baselines, which have no intercept."""
        if self.inputs.shape[1] < 3:
            raise ValueError("expected instruction_difficulty beside gamed baselines, came None: pass it, or no gamed")
        n = len(gamed.outcomes)
        columns = [[-math.tanh(d) for d in gamed.differences], list(gamed.instruction_difficulty), [0.0] * n]
        is_finite = all(map(math.isfinite, [value for column in columns for value in column]))
        if {len(c) for c in columns} != {n} or not is_finite or not all(0 <= y <= 1 for y in gamed.outcomes):
            raise ValueError(
                f"expected outcomes in [0, 1] with a finite difference and difficulty each, came {gamed!r:.300}"
            )
        added = torch.tensor(columns, dtype=torch.float64).T
        outcomes = torch.tensor(list(gamed.outcomes), dtype=torch.float64)
        weights = torch.full((n,), GAMED_WEIGHT, dtype=torch.float64)
        numbers = torch.arange(n, dtype=torch.float64)
        return _Annotations(
            torch.cat([added, self.inputs]), torch.cat([outcomes, self.outcomes]), torch.cat([weights, self.weights]),
            torch.cat([numbers, n + self.prompts]), self.own,
        )  # fmt: skip

    def rate(self, inverse_strength: float) -> float:
        """Mean chance of a win where no length differs."""
        own = self.inputs[-self.own :]
        if not own[:, 0].ne(own[0, 0]).any():  # equal differences: nothing tells the effect of length from skill
            return fmean(self.outcomes[-self.own :].tolist())
        [coefficients] = self._fits(torch.arange(len(self.outcomes)), [inverse_strength])
        return torch.sigmoid(own[:, 1:] @ coefficients[1:]).mean().item()

    def best_inverse_strength(self) -> float:
        """Of the ten, the first of those with the least cross-entropy on prompts left out."""
        from sklearn.model_selection import GroupKFold

        losses = torch.zeros(len(INVERSE_STRENGTHS), dtype=torch.float64)
        twice = torch.cat([self.prompts, self.prompts]).numpy()  # as the reference does: which fold depends on it
        for folds in GroupKFold(FOLDS).split(twice, groups=twice):
            train, test = (torch.from_numpy(rows[rows < len(self.outcomes)]) for rows in folds)
            for place, coefficients in enumerate(self._fits(train, INVERSE_STRENGTHS)):
                losses[place] += self._cross_entropy(test, coefficients)
        return INVERSE_STRENGTHS[int(losses.argmin())]

    def _cross_entropy(self, rows: Tensor, coefficients: Tensor) -> float:
        """Weighted, mean over the rows."""
        chances = torch.sigmoid(self.inputs[rows] @ coefficients).clamp(MIN_CHANCE, 1 - MIN_CHANCE)
        won = self.outcomes[rows]
        return -((won * chances.log() + (1 - won) * (1 - chances).log()) * self.weights[rows]).mean().item()

    def _fits(self, rows: Tensor, inverse_strengths: Sequence[float]) -> list[Tensor]:
        """Coefficients for each strength. A row is a win of its outcome's weight and a loss of the rest."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.utils import check_random_state

        inputs, won, weights = self.inputs[rows], self.outcomes[rows], self.weights[rows]
        twice = torch.cat([inputs, inputs]).numpy()
        labels = torch.arange(2).flip(0).repeat_interleave(len(rows)).numpy()
        shares = torch.stack([won * weights, (1 - won) * weights])
        shares[shares.sum(1) == 0] = TRACE  # the solver fails where a label has no weight
        order = check_random_state(SOLVER_SEED)  # shared by the strengths: near-ties between them depend on it
        fits = []
        for strength in inverse_strengths:
            model = LogisticRegression(
                C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=order
            )
            with warnings.catch_warnings():  # where length separates, it stops at its 100th step, the reference's too
                warnings.simplefilter("ignore", ConvergenceWarning)
                fits.append(torch.from_numpy(model.fit(twice, labels, sample_weight=shares.flatten().numpy()).coef_[0]))
        return fits
