"""Checkpoint selection: by hand, the flaw of the paper's rule, and the invariances of the safe one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kit.selection import best_checkpoint, length_adjusted_rewards, length_normalised_rewards


def table(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_length_normalised_is_the_ratio_of_means_not_the_mean_of_ratios() -> None:
    # Means 2 and 20: 0.1. The mean of the ratios 1/10 and 3/30 would be 0.1 too, so: 1/30 and 3/10 -> 1/6.
    found = length_normalised_rewards(table([1, 3], [3, 3]), table([30, 10], [10, 20]))
    assert found.tolist() == pytest.approx([0.1, 0.2])


def test_at_negative_rewards_the_papers_rule_prefers_the_longer() -> None:
    # Both checkpoints get -2 everywhere; the second is three times as long. -2/10 < -2/30: the longer one wins. With 5
    # added to every reward, which leaves every comparison of completions as it is, 3/10 > 3/30: the shorter one wins.
    rewards, lengths = table([-2, -2], [-2, -2]), table([10, 10], [30, 30])
    assert best_checkpoint(length_normalised_rewards(rewards, lengths)) == 1
    assert best_checkpoint(length_normalised_rewards(rewards + 5, lengths)) == 0
    # Even a checkpoint that is worse for every prompt: -3/30 > -2/10.
    assert best_checkpoint(length_normalised_rewards(table([-2, -2], [-3, -3]), lengths)) == 1


def test_length_adjusted_by_hand() -> None:
    # Lengths 10 20 / 40 70: means 15 and 55 by checkpoint, 25 and 45 by prompt, 35 in all; what is left is
    # 10 - 15 - 25 + 35 = 5 in the corners and -5 beside them. Rewards 1 2 / 3 6: means 1.5 and 4.5, 2 and 4, 3; left
    # is 1 - 1.5 - 2 + 3 = 0.5 and -0.5. Slope 4 (5)(.5) / 4 (25) = 0.1. At length 25: 1.5 - .1 (15 - 25) and
    # 4.5 - .1 (55 - 25).
    found = length_adjusted_rewards(table([1, 2], [3, 6]), table([10, 20], [40, 70]), at_length=25)
    assert found.tolist() == pytest.approx([2.5, 1.5])
    found = length_adjusted_rewards(table([1, 2], [3, 6]), table([10, 20], [40, 70]), at_length=0.5)
    assert found.tolist() == pytest.approx([0.05, -0.95])
    # The mean length, 35, is the default.
    found = length_adjusted_rewards(table([1, 2], [3, 6]), table([10, 20], [40, 70]))
    assert found.tolist() == pytest.approx([3.5, 2.5])


def test_slope_is_that_of_least_squares_with_a_term_for_each_checkpoint_and_prompt() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    lengths = 50 + 10 * torch.rand(4, 6, generator=generator, dtype=torch.float64)
    columns = [lengths.flatten()]
    columns += [torch.eye(4, dtype=torch.float64)[c].repeat_interleave(6) for c in range(4)]
    columns += [torch.eye(6, dtype=torch.float64)[p].repeat(4) for p in range(1, 6)]
    slope = torch.linalg.lstsq(torch.stack(columns, 1), rewards.flatten()[:, None]).solution[0, 0]
    expected = rewards.mean(1) - slope * (lengths.mean(1) - 50)
    assert length_adjusted_rewards(rewards, lengths, at_length=50).tolist() == pytest.approx(
        expected.tolist(), abs=1e-9
    )


def test_reward_that_is_length_alone_leaves_nothing_to_choose() -> None:
    lengths = table([10, 14, 18], [20, 31, 28], [40, 44, 39])
    found = length_adjusted_rewards(0.25 * lengths - 3, lengths)
    assert found.tolist() == pytest.approx([found[0].item()] * 3)


def test_a_better_and_longer_checkpoint_does_not_pay_for_being_better() -> None:
    # On each checkpoint's own completions length brings nothing; the second is better by 1 and longer by 30.
    rewards, lengths = table([0, 1, 0, 1], [1, 2, 1, 2]), table([10, 10, 20, 20], [40, 40, 50, 50])
    assert length_adjusted_rewards(rewards, lengths).tolist() == pytest.approx([0.5, 1.5])


def test_a_prompt_that_calls_for_length_is_no_length_bias() -> None:
    # Reward and length depend on the prompt alone; a checkpoint's constant is kept whole.
    rewards, lengths = table([1, 5], [2, 6]), table([10, 50], [20, 60])
    assert length_adjusted_rewards(rewards, lengths).tolist() == pytest.approx([3, 4])


TABLES = st.integers(1, 4).flatmap(
    lambda prompts: st.lists(
        st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 200)), min_size=prompts, max_size=prompts),
        min_size=1, max_size=4,
    )
)  # fmt: skip


@given(TABLES, st.integers(-100, 100), st.sampled_from([0.5, 3.0]))
def test_neither_zero_nor_unit_of_the_reward_matters(
    cells: list[list[tuple[int, int]]], shift: int, unit: float
) -> None:
    both = torch.tensor(cells, dtype=torch.float64)
    rewards, lengths = both[..., 0], both[..., 1]
    scores = length_adjusted_rewards(rewards, lengths)
    moved = length_adjusted_rewards(unit * rewards + shift, lengths)
    assert moved.tolist() == pytest.approx((unit * scores + shift).tolist(), abs=1e-6)


@given(TABLES, st.integers(1, 20))
def test_a_constant_for_one_checkpoint_moves_its_score_alone(cells: list[list[tuple[int, int]]], gain: int) -> None:
    both = torch.tensor(cells, dtype=torch.float64)
    rewards, lengths = both[..., 0].clone(), both[..., 1]
    scores = length_adjusted_rewards(rewards, lengths)
    rewards[0] += gain
    expected = [scores[0].item() + gain, *scores[1:].tolist()]
    assert length_adjusted_rewards(rewards, lengths).tolist() == pytest.approx(expected, abs=1e-6)


def test_where_the_effect_of_length_cannot_be_told_nothing_is_adjusted() -> None:
    # Length is a checkpoint's number plus a prompt's; the thirds in its means leave rounding, which is no slope.
    lengths, rewards = table([10, 11, 14], [21, 22, 25], [34, 35, 38]), table([1, 2, 0], [5, 4, 3], [0, 1, 5])
    assert length_adjusted_rewards(rewards, lengths).tolist() == pytest.approx([1, 4, 2])
    assert length_adjusted_rewards(torch.ones(1, 2), torch.full((1, 2), 7.0)).tolist() == [1.0]


def test_best_checkpoint_is_the_earliest_of_equals() -> None:
    assert best_checkpoint(table([0.0, 2.0, 2.0])[0]) == 1
    assert best_checkpoint(table([-3.0])[0]) == 0
    for scores in ([], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="a finite score for each"):
            best_checkpoint(torch.tensor(scores))


@pytest.mark.parametrize("rule", [length_normalised_rewards, length_adjusted_rewards])
@pytest.mark.parametrize(
    ("rewards", "lengths", "message"),
    [
        (torch.ones(0, 0), torch.ones(0, 0), "rewards and positive lengths"),
        (torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), "positive lengths"),
        (torch.tensor([[1.0, math.nan]]), torch.ones(1, 2), "leave out what was not judged"),
        (torch.ones(1, 2), torch.tensor([[1.0, math.inf]]), "finite rewards and lengths"),
    ],
)
def test_what_cannot_be_compared_is_refused(rule, rewards: torch.Tensor, lengths: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(rewards, lengths)


@pytest.mark.parametrize("at_length", [0.0, -1.0, math.inf, math.nan])
def test_common_length_is_positive_and_finite(at_length: float) -> None:
    with pytest.raises(ValueError, match="at_length > 0"):
        length_adjusted_rewards(torch.ones(1, 2), torch.ones(1, 2), at_length=at_length)
