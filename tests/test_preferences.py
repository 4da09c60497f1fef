"""Preferences drawn from utilities: probabilities by hand, rates of draws, and the noise ceiling by enumeration."""

import math
import os
import random
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.preferences import BradleyTerry, expected_accuracy

LN3 = math.log(3)


@pytest.mark.parametrize(
    ("annotator", "gap", "length_gap", "probability"),
    [
        (BradleyTerry(), 0.0, 0.0, 0.5),
        (BradleyTerry(), LN3, 0.0, 0.75),  # 1 / (1 + e^-ln 3) = 1 / (1 + 1/3)
        (BradleyTerry(), -LN3, 0.0, 0.25),
        (BradleyTerry(), LN3, 100.0, 0.75),  # no bonus: length does not matter
        (BradleyTerry(temperature=2.0), 2 * LN3, 0.0, 0.75),
        (BradleyTerry(temperature=0.5), LN3, 0.0, 0.9),  # 1 / (1 + 1/9)
        (BradleyTerry(length_bonus=LN3 / 4), 0.0, 4.0, 0.75),  # 4 words more
        (BradleyTerry(length_bonus=LN3 / 4), LN3, -8.0, 0.25),  # ln 3 - 2 ln 3: 8 words fewer
        (BradleyTerry(temperature=2.0, length_bonus=LN3 / 4), LN3, 4.0, 0.75),  # (ln 3 + ln 3) / 2
        (BradleyTerry(), 1e6, 0.0, 1.0),
        (BradleyTerry(), -1e6, 0.0, 0.0),
    ],
)
def test_probability_by_hand(annotator: BradleyTerry, gap: float, length_gap: float, probability: float) -> None:
    assert annotator.probability(gap, length_gap) == pytest.approx(probability, abs=1e-12)


@given(st.floats(-50, 50), st.integers(-50, 50), st.floats(0.1, 10), st.floats(-1, 1))
def test_swapping_the_completions_swaps_the_preference(
    gap: float, length_gap: int, temperature: float, bonus: float
) -> None:
    annotator = BradleyTerry(temperature, bonus)
    there, back = annotator.probability(gap, length_gap), annotator.probability(-gap, -length_gap)
    assert there + back == pytest.approx(1, abs=1e-12)


def test_draws_come_at_the_probability() -> None:
    annotator, count = BradleyTerry(length_bonus=LN3 / 4), 4000
    for gap, length_gap, probability in ((LN3, 0, 0.75), (0.0, -4, 0.25), (LN3, 4, 0.9)):
        wins = sum(annotator.draw([gap] * count, [length_gap] * count, random.Random(0)))
        assert abs(wins / count - probability) <= 5 * math.sqrt(probability * (1 - probability) / count)


def test_one_number_a_pair_is_drawn() -> None:
    rng, same = random.Random(3), random.Random(3)
    expected = [same.random() < 0.75 for _ in range(20)]
    assert BradleyTerry().draw([LN3 + 1e-12] * 20, [0.0] * 20, rng) == expected
    assert rng.random() == same.random()


GAPS, LENGTH_GAPS = [1.5, -0.5, 0.0, 0.25, -3.0], [-3, 2, 5, 0, 1]


def enumerated(annotator: BradleyTerry, ordering: list[float]) -> float:
    """Over all 2^5 outcomes of the draws: probability times the fraction of pairs that the ordering gets right."""
    total = 0.0
    for outcome in product([True, False], repeat=5):
        probability, right = 1.0, 0.0
        for preferred, gap, length_gap, ordered in zip(outcome, GAPS, LENGTH_GAPS, ordering, strict=True):
            first = 1 / (1 + math.exp(-(gap + annotator.length_bonus * length_gap) / annotator.temperature))
            probability *= first if preferred else 1 - first
            right += 0.5 if ordered == 0 else float(preferred == (ordered > 0))
        total += probability * right / 5
    return total


@pytest.mark.parametrize("annotator", [BradleyTerry(), BradleyTerry(0.5), BradleyTerry(2.0, 0.3), BradleyTerry(1, -1)])
def test_the_noise_ceiling_is_the_mean_over_all_outcomes(annotator: BradleyTerry) -> None:
    assert annotator.noise_ceiling(GAPS, LENGTH_GAPS) == pytest.approx(enumerated(annotator, GAPS), abs=1e-12)


def test_the_noise_ceiling_by_hand() -> None:
    # .75 for the clear pair, the same for it turned round, a coin for the tie: (.75 + .75 + .5) / 3
    assert BradleyTerry().noise_ceiling([LN3, -LN3, 0.0], [0, 0, 0]) == pytest.approx(2 / 3, abs=1e-12)
    # Two ties of utility that differ by 4 words: who knows the utilities can only guess, although .75 can be had.
    biased = BradleyTerry(length_bonus=LN3 / 4)
    assert biased.noise_ceiling([0.0, 0.0], [4, -4]) == 0.5
    assert expected_accuracy([4.0, -4.0], biased.probabilities([0.0, 0.0], [4, -4])) == pytest.approx(0.75, abs=1e-12)


@given(st.lists(st.floats(-5, 5), min_size=5, max_size=5))
def test_no_ordering_beats_the_ceiling_of_an_unbiased_annotator(ordering: list[float]) -> None:
    annotator = BradleyTerry(temperature=0.7)
    accuracy = expected_accuracy(ordering, annotator.probabilities(GAPS, LENGTH_GAPS))
    assert accuracy <= annotator.noise_ceiling(GAPS, LENGTH_GAPS) + 1e-12


def test_the_ceiling_falls_with_the_temperature_from_certainty_to_a_coin() -> None:
    gaps, lengths = [1.0, -2.0, 0.5], [0, 0, 0]
    ceilings = [BradleyTerry(temperature).noise_ceiling(gaps, lengths) for temperature in (1e-3, 0.5, 1, 2, 1e6)]
    assert ceilings == sorted(ceilings, reverse=True)
    assert ceilings[0] == pytest.approx(1.0) and ceilings[-1] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(("temperature", "bonus"), [(0.0, 0.0), (-1.0, 0.0), (math.inf, 0.0), (1.0, math.nan)])
def test_an_impossible_annotator_is_refused(temperature: float, bonus: float) -> None:
    with pytest.raises(ValueError, match="finite temperature > 0"):
        BradleyTerry(temperature, bonus)


@pytest.mark.parametrize(
    ("gaps", "probabilities"), [([], []), ([1.0], []), ([math.nan], [0.5]), ([1.0], [1.1]), ([1.0], [math.nan])]
)
def test_impossible_pairs_are_refused(gaps: list[float], probabilities: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        expected_accuracy(gaps, probabilities)


def test_lengths_must_match_the_pairs() -> None:
    with pytest.raises(ValueError, match="zip"):
        BradleyTerry().draw([1.0, 2.0], [0.0], random.Random(0))


def test_preferences_are_the_same_in_every_process() -> None:
    program = (
        "import random; from kit.preferences import BradleyTerry\n"
        "print(BradleyTerry(1, .1).draw([i / 9 for i in range(-20, 20)], list(range(40)), random.Random('seed')))"
    )
    root = Path(__file__).parents[1]
    gaps = [i / 9 for i in range(-20, 20)]
    expected = BradleyTerry(1, 0.1).draw(gaps, list(range(40)), random.Random("seed"))
    for hash_seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert found.stdout.strip() == str(expected)
