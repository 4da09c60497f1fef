"""GroupDPO's loss: by hand, as DPO over all pairs, and what must not change it."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from kit.losses import dpo_loss, group_dpo_loss


def nats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# beta 1/2. Implicit rewards (log pi - log pi_ref) / 2: 1, -0.5, 0, and 0.5; the first and the third are correct.
# Margins: 1 + 0.5 = 1.5 and 1 - 0.5 = 0.5 of the first; 0.5 and -0.5 of the third.
LOGPROBS, REF_LOGPROBS = nats(-3, -5, -4, -2), nats(-5, -4, -4, -3)
IS_CORRECT = torch.tensor([True, False, True, False])
MARGINS = [1.5, 0.5, 0.5, -0.5]


def loss_of(margin: float) -> float:
    return math.log(1 + math.exp(-margin))  # -log sigma


def weight_of(margin: float) -> float:
    return 1 / (1 + math.exp(margin))  # sigma(-margin)


def test_loss_is_the_mean_of_minus_log_sigma_over_correct_times_incorrect() -> None:
    loss, _ = group_dpo_loss(LOGPROBS, REF_LOGPROBS, IS_CORRECT, beta=0.5)
    # (0.20141328 + 2 * 0.47407698 + 0.97407698) / 4
    assert loss.item() == pytest.approx(0.53091106, abs=1e-8)
    assert loss.item() == pytest.approx(sum(map(loss_of, MARGINS)) / 4, abs=1e-12)


def test_metrics_are_means_over_completions_and_over_pairs() -> None:
    _, metrics = group_dpo_loss(LOGPROBS, REF_LOGPROBS, IS_CORRECT, beta=0.5)
    assert metrics == pytest.approx(
        {
            "rewards/chosen": 0.5,  # (1 + 0) / 2
            "rewards/rejected": 0.0,  # (-0.5 + 0.5) / 2
            "rewards/margins": 0.5,
            "rewards/accuracies": 0.75,
            "logps/chosen": -3.5,
            "logps/rejected": -3.5,
            "pairs/weight": sum(map(weight_of, MARGINS)) / 4,
        },
        abs=1e-12,
    )
    assert all(type(value) is float for value in metrics.values())


def test_each_completion_is_pulled_by_the_weights_of_its_pairs_and_none_reaches_the_reference() -> None:
    logprobs, ref_logprobs = LOGPROBS.clone().requires_grad_(), REF_LOGPROBS.clone().requires_grad_()
    group_dpo_loss(logprobs, ref_logprobs, IS_CORRECT, beta=0.5)[0].backward()
    w = [weight_of(margin) for margin in MARGINS]  # of (first, second), (first, fourth), (third, second), ...
    expected = [-0.5 * x / 4 for x in (w[0] + w[1], -(w[0] + w[2]), w[2] + w[3], -(w[1] + w[3]))]
    assert logprobs.grad is not None and logprobs.grad.tolist() == pytest.approx(expected, abs=1e-12)
    assert ref_logprobs.grad is None


def random_group(size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    logprobs, ref_logprobs = -5 * torch.rand(2, size, generator=generator, dtype=torch.float64)
    is_correct = torch.rand(size, generator=generator) < 0.4
    is_correct[0], is_correct[-1] = True, False
    return logprobs, ref_logprobs, is_correct


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_it_is_dpo_on_all_pairs_and_so_what_a_random_pair_is_on_average(size: int) -> None:
    logprobs, ref_logprobs, is_correct = random_group(size)
    correct, incorrect = is_correct.nonzero()[:, 0].tolist(), (~is_correct).nonzero()[:, 0].tolist()
    pairs = list(product(correct, incorrect))  # each as likely as another
    chosen, rejected = (torch.tensor(side) for side in zip(*pairs, strict=True))
    logprobs.requires_grad_()
    alone = [
        dpo_loss(logprobs[[c]], logprobs[[r]], ref_logprobs[[c]], ref_logprobs[[r]], beta=0.3)[0] for c, r in pairs
    ]
    together, metrics = dpo_loss(
        logprobs[chosen], logprobs[rejected], ref_logprobs[chosen], ref_logprobs[rejected], beta=0.3
    )
    found, found_metrics = group_dpo_loss(logprobs, ref_logprobs, is_correct, beta=0.3)
    assert found.item() == pytest.approx(together.item(), abs=1e-12)
    assert found_metrics == pytest.approx(metrics, abs=1e-12)
    gradients = [
        torch.autograd.grad(loss, logprobs, retain_graph=True)[0] for loss in (found, together, sum(alone) / len(pairs))
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("beta", [0.01, 0.1, 3.0])
def test_at_the_reference_the_loss_is_log_2_and_the_weight_a_half(beta: float) -> None:
    loss, metrics = group_dpo_loss(LOGPROBS, LOGPROBS, IS_CORRECT, beta=beta)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
    assert (metrics["pairs/weight"], metrics["rewards/margins"], metrics["rewards/accuracies"]) == (0.5, 0.0, 0.0)


def test_a_shift_of_policy_and_reference_together_changes_nothing() -> None:
    shift = nats(3, -1, 0.5, 7)
    shifted = group_dpo_loss(LOGPROBS + shift, REF_LOGPROBS + shift, IS_CORRECT)[0]
    assert shifted.item() == pytest.approx(group_dpo_loss(LOGPROBS, REF_LOGPROBS, IS_CORRECT)[0].item(), abs=1e-12)


def test_a_common_shift_of_the_policy_changes_nothing() -> None:
    shifted = group_dpo_loss(LOGPROBS - 4, REF_LOGPROBS, IS_CORRECT)[0]
    assert shifted.item() == pytest.approx(group_dpo_loss(LOGPROBS, REF_LOGPROBS, IS_CORRECT)[0].item(), abs=1e-12)


def test_the_order_within_the_group_does_not_matter() -> None:
    order = torch.tensor([2, 0, 3, 1])
    loss, metrics = group_dpo_loss(LOGPROBS[order], REF_LOGPROBS[order], IS_CORRECT[order])
    expected, expected_metrics = group_dpo_loss(LOGPROBS, REF_LOGPROBS, IS_CORRECT)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert metrics == pytest.approx(expected_metrics, abs=1e-12)


def test_swapping_correct_and_incorrect_negates_the_margins() -> None:
    one, other = (group_dpo_loss(LOGPROBS, REF_LOGPROBS, which, beta=0.5) for which in (IS_CORRECT, ~IS_CORRECT))
    assert other[1]["rewards/margins"] == pytest.approx(-one[1]["rewards/margins"], abs=1e-12)
    # -log sigma(-m) = -log sigma(m) + m
    assert other[0].item() == pytest.approx(one[0].item() + one[1]["rewards/margins"], abs=1e-12)


def test_a_huge_margin_neither_overflows_nor_loses_the_gradient() -> None:
    logprobs = torch.tensor([-2000.0, 0.0], requires_grad=True)
    loss, _ = group_dpo_loss(logprobs, torch.zeros(2), torch.tensor([True, False]), beta=1.0)
    assert loss.item() == 2000.0
    assert torch.autograd.grad(loss, logprobs)[0].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta > 0, came {beta}"):
        group_dpo_loss(LOGPROBS, REF_LOGPROBS, IS_CORRECT, beta=beta)


@pytest.mark.parametrize(("which", "came"), [([True] * 4, "4 correct of 4"), ([False] * 4, "0 correct of 4")])
def test_a_group_without_contrast_is_refused(which: list[bool], came: str) -> None:
    with pytest.raises(ValueError, match=came):
        group_dpo_loss(LOGPROBS, REF_LOGPROBS, torch.tensor(which))


@pytest.mark.parametrize(
    "arguments",
    [
        (nats(), nats(), torch.tensor([], dtype=torch.bool)),
        (LOGPROBS, REF_LOGPROBS[:1], IS_CORRECT),  # would broadcast
        (LOGPROBS, REF_LOGPROBS, IS_CORRECT[:2]),
        (LOGPROBS[:, None], REF_LOGPROBS[:, None], IS_CORRECT[:, None]),  # per token, not summed
        (LOGPROBS, REF_LOGPROBS, IS_CORRECT.double()),  # rewards instead of flags
    ],
    ids=["empty", "one reference", "two flags", "not summed", "rewards"],
)
def test_anything_but_one_number_a_completion_is_refused(arguments: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        group_dpo_loss(*arguments)


@pytest.mark.usefixtures("_shapes_unchecked")
def test_shapes_that_would_broadcast_are_named_in_the_error() -> None:
    with pytest.raises(ValueError, match=r"one shape, came .*ref_logprobs \(1,\)"):
        group_dpo_loss(LOGPROBS, REF_LOGPROBS[:1], IS_CORRECT)


def test_beta_is_a_tenth_unless_told_otherwise() -> None:
    # One pair whose log-ratios differ by 10 nats: -log sigma(0.1 * 10) = log(1 + e^-1).
    loss, _ = group_dpo_loss(nats(10.0, 0.0), nats(0.0, 0.0), torch.tensor([True, False]))
    assert loss.item() == pytest.approx(0.31326168751822286, abs=1e-12)
