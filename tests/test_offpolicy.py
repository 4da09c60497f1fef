"""The distance from the sampler: sums over all tokens that it may draw, which settle the direction, and by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kit.offpolicy import offpolicy_metrics

# Drawn by the sampler in proportion 4 : 2 : 1 : 1; the counts below make a mean over tokens that very expectation.
SAMPLER = torch.tensor([4, 2, 1, 1], dtype=torch.float64) / 8
POLICY = torch.tensor([1, 4, 2, 1], dtype=torch.float64) / 8
COUNTS = torch.tensor([4, 2, 1, 1])
# Ratios: 1/4, 2, 2, 1.
# KL(policy || sampler): (1/8) log(1/4) + (4/8) log 2 + (2/8) log 2 + 0 = (-2/8 + 4/8 + 2/8) log 2
KL = 0.5 * math.log(2)
# KL(sampler || policy): (4/8) log 4 + (2/8) log(1/2) + (1/8) log(1/2) + 0 = (8/8 - 2/8 - 1/8) log 2
REVERSED_KL = 0.625 * math.log(2)
# Second moment: (4/8) (2 log 2)^2 + (2/8 + 1/8) (log 2)^2 = (2 + 3/8) (log 2)^2
M2 = 2.375 * math.log(2) ** 2
# E[r] = 1, for the policy sums to 1; E[r^2] = (4/8)/16 + (3/8) 4 + 1/8 = 53/32
ESS = 32 / 53


def drawn(distribution: Tensor) -> Tensor:
    return distribution.log().repeat_interleave(COUNTS)


def test_over_the_samplers_distribution_each_metric_is_its_expectation() -> None:
    assert offpolicy_metrics(drawn(POLICY), drawn(SAMPLER)) == pytest.approx(
        {
            "offpolicy/kl": KL,
            "offpolicy/kl_reverse": REVERSED_KL,
            "offpolicy/m2": M2,
            "offpolicy/ess": ESS,
            "offpolicy/ratio_mean": 1.0,
            "offpolicy/ratio_min": 0.25,
            "offpolicy/ratio_max": 2.0,
        },
        abs=1e-12,
    )


def test_ess_by_hand() -> None:
    # Ratios 3, 1, 0.5, 0.5: 5^2 / (4 * (9 + 1 + 0.25 + 0.25)) = 25 / 42
    ratios = torch.tensor([3.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    assert offpolicy_metrics(ratios.log(), torch.zeros(4).double())["offpolicy/ess"] == pytest.approx(
        25 / 42, abs=1e-12
    )


def test_a_single_token_by_hand() -> None:
    # r = 1/2: r log r - r + 1 = 1/2 - (log 2)/2; r - 1 - log r = log 2 - 1/2
    found = offpolicy_metrics(torch.tensor([0.25]).log(), torch.tensor([0.5]).log())
    assert found["offpolicy/kl"] == pytest.approx(0.5 - math.log(2) / 2, abs=1e-6)
    assert found["offpolicy/kl_reverse"] == pytest.approx(math.log(2) - 0.5, abs=1e-6)
    assert found["offpolicy/ess"] == pytest.approx(1.0)


def test_a_policy_that_is_the_sampler_is_at_no_distance() -> None:
    found = offpolicy_metrics(drawn(POLICY), drawn(POLICY))
    assert found == {f"offpolicy/{name}": 0.0 for name in ("kl", "kl_reverse", "m2")} | {
        f"offpolicy/{name}": 1.0 for name in ("ess", "ratio_mean", "ratio_min", "ratio_max")
    }


def test_no_token_has_a_negative_distance_and_small_ones_keep_their_digits() -> None:
    for log_ratio in (-30.0, -2.0, -1e-4, 1e-4, 2.0, 30.0):
        found = offpolicy_metrics(torch.tensor([log_ratio]), torch.zeros(1))
        assert found["offpolicy/kl"] >= 0 and found["offpolicy/kl_reverse"] >= 0
        assert all(math.isfinite(value) for value in found.values())
    # Both are d^2 / 2 up to d^3: 5e-9 at d = 1e-4, where exp(d) - 1 - d in float32 would be 0 or 1.2e-7.
    found = offpolicy_metrics(torch.tensor([1e-4]), torch.zeros(1))
    assert found["offpolicy/kl"] == pytest.approx(5e-9, rel=1e-3) == found["offpolicy/kl_reverse"]


def test_metrics_are_plain_numbers_and_ask_for_no_gradient() -> None:
    found = offpolicy_metrics(drawn(POLICY).requires_grad_(), drawn(SAMPLER))
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize(
    "arguments",
    [
        lambda: (torch.zeros(0), torch.zeros(0)),
        lambda: (torch.zeros(3), torch.zeros(1)),  # would broadcast
        lambda: (torch.zeros(2, 3), torch.zeros(2, 3)),  # not the tokens that count, but a padded batch
    ],
)
def test_anything_but_one_number_a_token_is_refused(arguments: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        offpolicy_metrics(*arguments())


@pytest.mark.usefixtures("_shapes_unchecked")
def test_shapes_that_would_broadcast_are_named_in_the_error() -> None:
    with pytest.raises(ValueError, match=r"one shape, came logprobs \(3,\), old_logprobs \(1,\)"):
        offpolicy_metrics(torch.zeros(3), torch.zeros(1))


def test_a_ratio_beyond_all_bounds_counts_as_e_to_the_20() -> None:
    found = offpolicy_metrics(torch.tensor([-1.0]), torch.tensor([-501.0]))
    assert found["offpolicy/ratio_max"] == pytest.approx(485165195.4097903, rel=1e-12)  # e^20
    assert found["offpolicy/m2"] == 400.0 and found["offpolicy/ess"] == pytest.approx(1.0)
