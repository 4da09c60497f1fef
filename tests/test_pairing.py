"""Pairs from rewards: who is chosen, who is rejected, and when there is nothing to learn."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.pairing import PAIRINGS, all_pairs, best_worst, correct_incorrect, first_correct_incorrect

NAN = math.nan
GRADED = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, NAN]), max_size=7)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("rewards", "best_and_worst", "every_pair"),
    [
        ([0.0, 1.0], [(1, 0)], [(1, 0)]),
        ([1.0, 0.0, 1.0, 0.0], [(0, 1)], [(0, 1), (0, 3), (2, 1), (2, 3)]),  # first of equals
        ([0.5, -2.0, 3.0], [(2, 1)], [(0, 1), (2, 0), (2, 1)]),
        ([NAN, 2.0, NAN, 1.0], [(1, 3)], [(1, 3)]),  # indices stay those of the whole group
        ([1.0, 1.0, 1.0], [], []),
        ([NAN, 1.0], [], []),
        ([NAN, NAN], [], []),
        ([1.0], [], []),
        ([], [], []),
    ],
)
def test_pairs_of_a_group(
    rewards: list[float], best_and_worst: list[tuple[int, int]], every_pair: list[tuple[int, int]]
) -> None:
    assert best_worst(torch.tensor(rewards)) == best_and_worst
    assert all_pairs(torch.tensor(rewards)) == every_pair


@settings(deadline=None)
@given(GRADED)
def test_all_pairs_are_every_strict_preference_once(rewards: list[float]) -> None:
    pairs = all_pairs(torch.tensor(rewards))
    preferences = {(i, j) for i, x in enumerate(rewards) for j, y in enumerate(rewards) if x > y}
    assert set(pairs) == preferences and len(pairs) == len(preferences)
    assert pairs == sorted(pairs)


@settings(deadline=None)
@given(GRADED)
def test_negating_the_rewards_swaps_best_and_worst(rewards: list[float]) -> None:
    swapped = [(worst, best) for best, worst in best_worst(-torch.tensor(rewards))]
    assert best_worst(torch.tensor(rewards)) == swapped


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, NAN]), max_size=7), st.integers(0, 1000))
def test_a_correct_one_is_chosen_and_an_incorrect_one_rejected(rewards: list[float], seed: int) -> None:
    pairs = correct_incorrect(torch.tensor(rewards), generator(seed))
    assert len(pairs) == (0.0 in rewards and 1.0 in rewards)
    for chosen, rejected in pairs:
        assert (rewards[chosen], rewards[rejected]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("rewards", "pairs"),
    [
        ([0.0, 1.0], [(1, 0)]),
        ([0.0, 0.0, 1.0, 1.0], [(2, 0)]),
        ([1.0, 1.0, 0.0, 1.0, 0.0], [(0, 2)]),
        ([NAN, 0.0, NAN, 1.0], [(3, 1)]),  # indices stay those of the whole group
        ([1.0, 1.0, NAN], []),
        ([0.0, NAN], []),
        ([NAN], []),
        ([], []),
    ],
)
def test_the_first_of_each_is_the_pair_of_the_authors_code(rewards: list[float], pairs: list[tuple[int, int]]) -> None:
    source = generator(3)
    state = source.get_state()
    assert first_correct_incorrect(torch.tensor(rewards), source) == pairs
    assert torch.equal(source.get_state(), state)  # nothing is drawn
    assert first_correct_incorrect(torch.tensor(rewards)) == pairs


def test_every_pairing_has_its_name_for_papermill() -> None:
    assert {name: function.__name__ for name, function in PAIRINGS.items()} == {name: name for name in PAIRINGS}
    for pairing in PAIRINGS.values():
        assert pairing(torch.tensor([0.0, 1.0]), generator()) == [(1, 0)]


def test_every_combination_is_equally_likely() -> None:
    rewards, draws, source = torch.tensor([1.0, 0.0, NAN, 1.0, 0.0, 0.0]), 6000, generator()
    counts = Counter(correct_incorrect(rewards, source)[0] for _ in range(draws))
    assert set(counts) == {(chosen, rejected) for chosen in (0, 3) for rejected in (1, 4, 5)}
    standard_error = math.sqrt(draws * (1 / 6) * (5 / 6))  # 28.9 around 1000
    assert all(abs(count - draws / 6) < 5 * standard_error for count in counts.values())


def test_the_generator_alone_decides_and_is_left_alone_without_a_pair() -> None:
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    source, again = generator(7), generator(7)
    torch.manual_seed(1)
    first = [correct_incorrect(rewards, source) for _ in range(20)]
    torch.manual_seed(2)
    second = [correct_incorrect(rewards, again) for _ in range(20)]
    assert first == second
    state = source.get_state()
    assert correct_incorrect(torch.tensor([1.0, 1.0, NAN]), source) == []
    assert torch.equal(source.get_state(), state)


@pytest.mark.parametrize("other", [0.5, 2.0, -1.0, math.inf])
def test_a_graded_reward_is_neither_correct_nor_incorrect(other: float) -> None:
    with pytest.raises(ValueError, match=f"rewards 0 or 1.*came {other}.*best_worst"):
        correct_incorrect(torch.tensor([0.0, 1.0, other]), generator())
    with pytest.raises(ValueError, match=f"rewards 0 or 1.*came {other}.*best_worst"):
        first_correct_incorrect(torch.tensor([0.0, 1.0, other]))


def test_several_groups_at_once_are_refused() -> None:
    for pairing in PAIRINGS.values():
        with pytest.raises((ValueError, TypeError)):
            pairing(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), generator())


@pytest.mark.usefixtures("_shapes_unchecked")
@pytest.mark.parametrize("name", sorted(PAIRINGS))
def test_several_groups_at_once_are_named_in_the_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"rewards of one group, \(group,\), came \(2, 2\)"):
        PAIRINGS[name](torch.tensor([[0.0, 1.0], [1.0, 0.0]]), generator())
