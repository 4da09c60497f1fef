"""Win rates: outcomes by hand; the length-controlled rate against alpaca-eval's own code and cases for a pencil."""

import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from kit.statistics import two_level_bootstrap
from kit.winrate import GamedBaselines, length_controlled_interval, length_controlled_win_rate, outcome, win_rate

ROOT = Path(__file__).parents[1]
REFERENCE_FAILS = {"only losses": "only wins", "one win": "one loss"}  # case: the same, seen from the baseline's side


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


@cache
def golden() -> dict[str, Any]:
    """Written by tests/golden/alpaca_eval_reference.py with alpaca-eval 0.6.6 and scikit-learn 1.9.1."""
    return json.loads((ROOT / "tests" / "golden" / "alpaca_eval.json").read_text(encoding="utf-8"))["cases"]


def rates(case: dict[str, Any]) -> dict[str, float]:
    """The kit's win rates in percent of a golden case, under the reference's names for what enters the model."""
    preferences, baseline, lengths, difficulty = map(list, zip(*case["rows"], strict=True))
    outcomes = [preference - 1 for preference in preferences]
    differences = [float(b - a) for a, b in zip(baseline, lengths, strict=True)]
    won, shorter = map(list, zip(*case["gamed"], strict=True))  # the reference subtracts the other way round
    gamed = GamedBaselines(won, [-d for d in shorter], difficulty * 2)
    found = {
        "plain": fmean(outcomes),
        "without difficulty": length_controlled_win_rate(outcomes, differences),
        "with difficulty": length_controlled_win_rate(outcomes, differences, instruction_difficulty=difficulty),
        "with gamed baselines": length_controlled_win_rate(
            outcomes, differences, instruction_difficulty=difficulty, gamed=gamed
        ),
    }
    return {name: 100 * rate for name, rate in found.items()}


@pytest.mark.parametrize("name", sorted(set(golden()) - set(REFERENCE_FAILS)))
def test_alpaca_eval_finds_the_same_to_a_tenth_of_a_point(name: str) -> None:
    assert rates(golden()[name]) == pytest.approx(golden()[name]["expected"], abs=0.1)


@pytest.mark.parametrize("name", REFERENCE_FAILS)
def test_where_all_folds_but_one_are_lost_the_reference_fails_and_its_mirror_image_holds(name: str) -> None:
    mine, reference, mirrored = rates(golden()[name]), golden()[name]["expected"], golden()[REFERENCE_FAILS[name]]
    for mode in ("without difficulty", "with difficulty"):
        assert reference[mode] + mirrored["expected"][mode] > 102  # from the two sides it should be 100
        assert mine[mode] + mirrored["expected"][mode] == pytest.approx(100, abs=0.1)


def often(values: list[float], times: int) -> list[float]:
    """Each value that many times, in blocks: prompt i is in fold i mod 5, and tiles of 20 would make unlike folds."""
    return [value for value in values for _ in range(times)]


def test_length_controlled_win_rate_by_hand() -> None:
    # Lengths differ by +6 or -6, so tanh(d / s) = +t or -t, and a line through two points fits exactly:
    # a + b t = logit .9 = ln 9 and a - b t = logit .5 = 0, so a = ln 3 and sigma(a) = 3/4. The plain rate is .7.
    # At the penalised optimum the mean residual is at most 1 / (2000 C), so C = 21.5, say, moves a by about 1e-4.
    outcomes = often([1.0] * 9 + [0.0] + [1.0] * 5 + [0.0] * 5, 100)
    differences = often([6.0] * 10 + [-6.0] * 10, 100)
    assert fmean(outcomes) == 0.7
    assert length_controlled_win_rate(outcomes, differences) == pytest.approx(0.75, abs=5e-4)


def test_two_lengths_of_unequal_weight_by_hand() -> None:
    # d = +1 in 3 of 4 prompts, -1 in 1 of 4. Again t and -t, so with rates 2/3 (logit ln 2) and 3/4 (logit ln 3) the
    # intercept is (ln 2 + ln 3) / 2: odds sqrt(6).
    outcomes = often([1.0] * 8 + [0.0] * 4 + [1.0] * 3 + [0.0], 100)
    found = length_controlled_win_rate(outcomes, often([1.0] * 12 + [-1.0] * 4, 100))
    assert found == pytest.approx(math.sqrt(6) / (1 + math.sqrt(6)), abs=2e-3)


@pytest.mark.parametrize("difference", [0.0, 5.0, -3.0])
def test_equal_differences_leave_the_plain_win_rate(difference: float) -> None:
    assert length_controlled_win_rate([1.0, 0.5, 0.0, 1.0, 1.0], [difference] * 5) == 0.7
    assert length_controlled_win_rate([0.5] * 5, [difference] * 5) == 0.5  # a baseline and itself


def test_a_policy_that_wins_by_length_alone_is_worth_a_half() -> None:
    # Longer by 5 it wins 4 in 5, shorter by 5 it wins 1 in 5; it is longer on most prompts.
    outcomes = often(([1.0] * 4 + [0.0]) * 9 + [1.0] + [0.0] * 4, 20)
    differences = often([5.0] * 45 + [-5.0] * 5, 20)
    assert fmean(outcomes) == 0.74
    assert length_controlled_win_rate(outcomes, differences) == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize("name", golden())
def test_seen_from_the_other_side_the_rates_sum_to_one_and_the_unit_of_length_cancels(name: str) -> None:
    preferences, baseline, lengths, _ = zip(*golden()[name]["rows"], strict=True)
    outcomes = [preference - 1 for preference in preferences]
    differences = [float(b - a) for a, b in zip(baseline, lengths, strict=True)]
    there = length_controlled_win_rate(outcomes, differences)
    back = length_controlled_win_rate([1 - y for y in outcomes], [-d for d in differences])
    assert there + back == pytest.approx(1, abs=1e-6)
    assert length_controlled_win_rate(outcomes, [0.25 * d for d in differences]) == pytest.approx(there, abs=1e-9)


FIVE = [1.0, 0.0, 1.0, 0.5, 0.0]
LENGTHS = [1.0, -2.0, 3.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("outcomes", "differences", "difficulty", "gamed", "message"),
    [
        ([], [], None, None, "at least 5 prompts"),
        ([1.0] * 4, [1.0] * 4, None, None, "at least 5 prompts"),
        (FIVE, [1.0], None, None, "each of 1 differences"),
        ([1.5, *FIVE], [0.0, *LENGTHS], None, None, r"\[0, 1\]"),
        ([math.nan, *FIVE], [0.0, *LENGTHS], None, None, r"\[0, 1\]"),
        (FIVE, [math.inf] * 5, None, None, "finite differences"),
        (FIVE, LENGTHS, [1.0], None, "a finite difficulty for each of 5"),
        (FIVE, LENGTHS, [math.nan] * 5, None, "a finite difficulty for each of 5"),
        (FIVE, LENGTHS, None, GamedBaselines([1.0], [1.0], [1.0]), "pass it, or no gamed"),
        (FIVE, LENGTHS, LENGTHS, GamedBaselines([1.0], [1.0, 2.0], [1.0]), "a finite difference and difficulty each"),
        (FIVE, LENGTHS, LENGTHS, GamedBaselines([2.0], [1.0], [1.0]), r"expected outcomes in \[0, 1\]"),
        (FIVE, LENGTHS, LENGTHS, GamedBaselines([1.0], [math.nan], [1.0]), "a finite difference"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    outcomes: list[float],
    differences: list[float],
    difficulty: list[float] | None,
    gamed: GamedBaselines | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        length_controlled_win_rate(outcomes, differences, instruction_difficulty=difficulty, gamed=gamed)


def annotated(runs: int, prompts: int, samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Outcomes with chance sigma(.3 + tanh(d)) for standard normal differences d."""
    generator = torch.Generator().manual_seed(seed)
    differences = torch.randn(runs, prompts, samples, generator=generator, dtype=torch.float64)
    chances = torch.sigmoid(0.3 + torch.tanh(differences))
    return torch.bernoulli(chances, generator=generator), differences


def test_length_controlled_interval_of_one_run_holds_its_rate_and_is_as_wide_as_the_delta_method_says() -> None:
    outcomes, differences = annotated(1, 400, 1)
    found = length_controlled_interval(outcomes, differences, seed=1)
    rate = length_controlled_win_rate(outcomes.flatten().tolist(), differences.flatten().tolist())
    assert found.mean == rate and found.n == 400
    # Inverse of the Fisher information of (a, b) at the maximum; d sigma(a) / da = p (1 - p); 1.96 standard errors.
    lengths = torch.tanh(differences.flatten() / differences.std())
    inputs = torch.stack([torch.ones_like(lengths), lengths], 1)
    chances = torch.sigmoid(inputs @ torch.tensor([math.log(rate / (1 - rate)), 1.0], dtype=torch.float64))
    information = (inputs.T * (chances * (1 - chances))) @ inputs
    width = 2 * 1.96 * rate * (1 - rate) * math.sqrt(torch.linalg.inv(information)[0, 0].item())
    assert found.high - found.low == pytest.approx(width, rel=0.2)  # 200 resamples: a quantile's error is about 8 %
    assert found.low < rate < found.high


def test_length_controlled_interval_over_runs_is_wider_and_its_mean_is_that_of_the_runs() -> None:
    outcomes, differences = annotated(4, 60, 2)
    outcomes[0], outcomes[1, :, 0] = 1 - outcomes[0], 0.5
    found = length_controlled_interval(outcomes, differences, seed=1, resamples=100)
    alone = [length_controlled_interval(outcomes[[r]], differences[[r]], seed=1, resamples=100) for r in range(4)]
    assert found.n == 4
    assert found.mean == pytest.approx(fmean(run.mean for run in alone), abs=1e-12)
    assert found.high - found.low > fmean(run.high - run.low for run in alone) / 2  # prompts shared: not averaged out
    again = length_controlled_interval(outcomes, differences, seed=1, resamples=100)
    assert again == found


def test_equal_lengths_leave_the_bootstrap_of_the_plain_rate() -> None:
    outcomes, _ = annotated(3, 20, 2)
    found = length_controlled_interval(outcomes, torch.zeros_like(outcomes), seed=5, resamples=50)
    plain = two_level_bootstrap(outcomes, seed=5, resamples=50)
    for end in ("mean", "low", "high"):
        assert getattr(found, end) == pytest.approx(getattr(plain, end), abs=1e-12)


def test_difficulty_reaches_the_interval() -> None:
    outcomes, differences = annotated(1, 60, 1)
    difficulty = torch.linspace(-2, 2, 60, dtype=torch.float64)
    found = length_controlled_interval(outcomes, differences, seed=1, instruction_difficulty=difficulty, resamples=2)
    wins, lengths = outcomes.flatten().tolist(), differences.flatten().tolist()
    rate = length_controlled_win_rate(wins, lengths, instruction_difficulty=difficulty.tolist())
    assert found.mean == rate != length_controlled_win_rate(wins, lengths)


def test_import_leaves_scikit_learn_alone() -> None:
    code = "import sys, kit.winrate, kit.ranking; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
