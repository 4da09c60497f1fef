"""Group advantages: golden values, exactness where it matters, and unbiasedness by summing over every group."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kit.advantages import centered, leave_one_out, standardized

NAN = math.nan
ALL = [centered, standardized, leave_one_out]
Advantages = Callable[[Tensor], Tensor]


def rows(*rewards: list[float]) -> Tensor:
    return torch.tensor(rewards, dtype=torch.float64)


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [
        (centered, [1.5, -0.5, -2.5, 1.5]),  # mean of 4, 2, 0, 4 is 2.5
        # squares 2.25 + .25 + 6.25 + 2.25 = 11, over 4 - 1
        (standardized, [x / (math.sqrt(11 / 3) + 1e-6) for x in (1.5, -0.5, -2.5, 1.5)]),
        (leave_one_out, [2.0, -2 / 3, -10 / 3, 2.0]),  # 4 - 6/3, 2 - 8/3, 0 - 10/3, 4 - 6/3
    ],
)
def test_golden_values(advantages: Advantages, expected: list[float]) -> None:
    group = [4.0, 2.0, 0.0, 4.0]
    assert advantages(rows(group))[0].tolist() == pytest.approx(expected, abs=1e-12)
    two_prompts = advantages(rows([1.0, 0.0, 0.0, 0.0], group))  # each row is a group of its own
    assert two_prompts[1].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [
        (centered, [2.0, NAN, -2.0, 0.0]),  # mean of 4, 0, 2 is 2
        (standardized, [2 / (2 + 1e-6), NAN, -2 / (2 + 1e-6), 0.0]),  # (4 + 4 + 0) / (3 - 1) = 4
        (leave_one_out, [3.0, NAN, -3.0, 0.0]),  # 4 - (0 + 2) / 2, 0 - (4 + 2) / 2, 2 - (4 + 0) / 2
    ],
)
def test_an_abstained_reward_counts_nowhere_and_stays_nan(advantages: Advantages, expected: list[float]) -> None:
    result = advantages(rows([4.0, NAN, 0.0, 2.0]))[0]
    assert result.tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [
        (centered, 2.0),  # the mean of 4 and 0 is 2
        (standardized, 2 / (math.sqrt(8) + 1e-6)),  # (4 + 4) / (2 - 1) = 8
        (leave_one_out, 4.0),  # 4 - 0
    ],
)
def test_two_that_were_judged_are_compared_with_each_other(advantages: Advantages, expected: float) -> None:
    result = advantages(rows([4.0, NAN, 0.0]))[0]
    assert result.tolist() == pytest.approx([expected, NAN, -expected], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("advantages", ALL)
def test_nobody_left_to_compare_with_is_no_signal(advantages: Advantages) -> None:
    result = advantages(rows([NAN, 3.0, NAN], [NAN, NAN, NAN]))
    torch.testing.assert_close(result, rows([NAN, 0.0, NAN], [NAN, NAN, NAN]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("advantages", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None)
@given(reward=st.floats(-1e6, 1e6, width=32), size=st.integers(2, 12))
def test_equal_rewards_give_exactly_zero(advantages: Advantages, dtype: torch.dtype, reward: float, size: int) -> None:
    # Seven times 0.1 has a mean that differs from 0.1 in the last bit; over std + 1e-6 that would not be small.
    result = advantages(torch.full((1, size), reward, dtype=dtype))
    assert torch.equal(result, torch.zeros(1, size, dtype=dtype))


def test_equal_rewards_without_eps_are_not_zero_over_zero() -> None:
    assert standardized(rows([0.1, 0.1, NAN, 0.1]), eps=0.0)[0].nan_to_num(7.0).tolist() == [0.0, 0.0, 7.0, 0.0]


@pytest.mark.parametrize("advantages", ALL)
def test_a_constant_added_to_all_rewards_changes_nothing(advantages: Advantages) -> None:
    rewards = rows([0.25, 1.0, NAN, -3.0])
    torch.testing.assert_close(advantages(rewards + 16), advantages(rewards), rtol=0, atol=0, equal_nan=True)


def test_a_scale_cancels_only_where_it_is_divided_out() -> None:
    rewards = rows([0.25, 1.0, 0.5, -3.0])
    torch.testing.assert_close(standardized(8 * rewards, eps=0.0), standardized(rewards, eps=0.0), rtol=1e-12, atol=0)
    for advantages in (centered, leave_one_out):
        torch.testing.assert_close(advantages(8 * rewards), 8 * advantages(rewards), rtol=1e-12, atol=0)


def test_the_standard_deviation_is_that_of_torch_std() -> None:
    rewards = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(standardized(rewards), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("advantages", "scale"), [(leave_one_out, 1.0), (centered, 2 / 3)])
def test_the_policy_gradient_is_unbiased_over_all_groups(advantages: Advantages, scale: float) -> None:
    """E over all groups of 3 from 3 outcomes; a mean that includes the completion itself shrinks it by (G - 1) / G."""
    rewards = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    logits = torch.tensor([0.2, -0.4, 0.7], dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad((logits.softmax(-1) * rewards).sum(), logits)
    logprobs = logits.log_softmax(-1)
    objective = torch.zeros((), dtype=torch.float64)
    for group in product(range(3), repeat=3):
        drawn = logprobs[list(group)]
        probability = drawn.detach().sum().exp()
        objective = objective + probability * (advantages(rewards[list(group)][None])[0] * drawn).mean()
    (estimated,) = torch.autograd.grad(objective, logits)
    torch.testing.assert_close(estimated, scale * exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("advantages", ALL)
def test_refusals(advantages: Advantages) -> None:
    with pytest.raises(ValueError, match=r"at least 2, came \(3, 1\)"):
        advantages(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="infinite"):
        advantages(rows([1.0, math.inf]))
    with pytest.raises((ValueError, TypeError)):
        advantages(torch.zeros(3))


def test_a_negative_eps_is_refused() -> None:
    with pytest.raises(ValueError, match="eps >= 0, came -1"):
        standardized(rows([0.0, 1.0]), eps=-1.0)
